// What the service is: each connection to the listener "main" is answered with "go N".
package main

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

func descriptor(conn *net.UnixConn) (fd uintptr) {
	raw, _ := conn.SyscallConn()
	raw.Control(func(found uintptr) { fd = found })
	return fd
}

// server accepts while its gate is open; the lock makes "closed" mean that nobody is accepting.
type server struct {
	mutex      sync.Mutex
	closed     bool
	listener   int
	generation uint64
}

func (s *server) gate(closed bool) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.closed = closed
}

func (s *server) run() {
	syscall.SetNonblock(s.listener, true)
	for {
		s.mutex.Lock()
		fd, err := -1, error(syscall.EAGAIN)
		if !s.closed {
			fd, _, err = syscall.Accept4(s.listener, syscall.SOCK_CLOEXEC)
		}
		s.mutex.Unlock()
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		syscall.Write(fd, []byte(fmt.Sprintf("go %d\n", s.generation)))
		syscall.Close(fd)
	}
}

func main() {
	begin := map[string]func(string) (*service, error){"own": own, "take": take}[os.Args[1]]
	s, err := begin(os.Args[2])
	if err != nil {
		report("failed", map[string]any{"sentence": err.Error()})
		os.Exit(3)
	}
	serving := &server{listener: s.items[0].fd, generation: s.generation}
	go serving.run()
	report("serving", map[string]any{"address": address(s.items[0].fd), "generation": s.generation,
		"items": len(s.items), "state": len(s.state)})
	s.give(func() { serving.gate(true) }, func() { serving.gate(false) })
	report("handed", map[string]any{})
}
