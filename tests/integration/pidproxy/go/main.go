// A server of the endless kind, with the standard library alone: HUP starts a successor on the inherited listener; the successor
// serves, then tells its parent to drain, and the parent ends when its last request is answered.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
)

func main() {
	number := 1
	var listener net.Listener
	var err error
	if text := os.Getenv("ENDLESS_GENERATION"); text != "" {
		number, _ = strconv.Atoi(text)
		listener, err = net.FileListener(os.NewFile(3, "listener"))
	} else {
		listener, err = net.Listen("tcp", "127.0.0.1:0")
	}
	check(err)

	body := fmt.Sprintf("app %d %d", number, os.Getpid())
	var inside sync.WaitGroup
	server := &http.Server{
		Handler: http.HandlerFunc(func(answer http.ResponseWriter, _ *http.Request) { fmt.Fprint(answer, body) }),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				inside.Add(1)
			case http.StateClosed, http.StateHijacked:
				inside.Done()
			}
		},
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGUSR1)
	served := make(chan struct{})
	go func() {
		server.Serve(listener)
		close(served)
	}()

	port := listener.Addr().(*net.TCPAddr).Port
	check(os.WriteFile("port.new", []byte(fmt.Sprintf("%d %d %d", port, number, os.Getpid())), 0o644))
	check(os.Rename("port.new", "port"))
	if number > 1 {
		syscall.Kill(os.Getppid(), syscall.SIGTERM)
	}
	for received := range signals {
		switch received {
		case syscall.SIGHUP:
			raw, err := listener.(*net.TCPListener).SyscallConn()
			check(err)
			os.Setenv("ENDLESS_GENERATION", strconv.Itoa(number+1))
			// Not by os/exec, which makes the shared socket a blocking one: an accept that is blocked outlives Close.
			check(raw.Control(func(fd uintptr) {
				_, err = syscall.ForkExec(os.Args[0], os.Args, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2, fd}})
			}))
			check(err)
		case syscall.SIGTERM:
			// Not Shutdown, which closes a connection whose request was read after it began.
			listener.Close()
			<-served
			server.SetKeepAlivesEnabled(false)
			inside.Wait()
			return
		}
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
