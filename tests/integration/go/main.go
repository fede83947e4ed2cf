// A taker and an owner written from docs/reference/protocol.md alone: `peer own PATH` binds a listener and offers it,
// `peer take PATH` takes the service over. Both answer connections with "go N", N being their generation, and hand the service
// over to whoever comes next.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"
)

const (
	soDomain, soProtocol, soCookie, soAcceptconn = 39, 38, 57, 30
	kindListener, kindFile, kindControl          = 1, 2, 4
)

type item struct {
	name string
	kind uint64
	fd   int
}

type service struct {
	path       string
	generation uint64
	items      []item
	state      []byte
	control    int
}

func report(event string, more map[string]any) {
	more["event"] = event
	line, _ := json.Marshal(more)
	fmt.Println(string(line))
}

func option(fd, name int) uint32 {
	value, _ := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, name)
	return uint32(value)
}

func cookie(fd int) uint64 {
	var value uint64
	size := uint32(8)
	syscall.Syscall6(syscall.SYS_GETSOCKOPT, uintptr(fd), syscall.SOL_SOCKET, soCookie,
		uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	return value
}

func address(fd int) string {
	name, _ := syscall.Getsockname(fd)
	switch at := name.(type) {
	case *syscall.SockaddrInet4:
		return fmt.Sprintf("%s:%d", net.IP(at.Addr[:]), at.Port)
	case *syscall.SockaddrInet6:
		return fmt.Sprintf("[%s]:%d", net.IP(at.Addr[:]), at.Port)
	case *syscall.SockaddrUnix:
		return "unix:" + at.Name
	}
	return ""
}

// entry describes a socket for the wire.
func (i item) entry() []byte {
	value := order.AppendUint16(nil, uint16(option(i.fd, soDomain)))
	value = order.AppendUint16(value, uint16(option(i.fd, syscall.SO_TYPE)))
	value = order.AppendUint32(value, option(i.fd, soProtocol))
	value = order.AppendUint32(value, option(i.fd, soAcceptconn)) // 1: listening
	value = order.AppendUint64(value, cookie(i.fd))
	return pack([]field{text(1, i.name), number(2, i.kind), {3, value}, text(4, address(i.fd))})
}

// verify says whether descriptor fd is what the entry says; only plain IPv4 and Unix sockets and files are known here.
func verify(raw []byte, fd int) (item, error) {
	fields, err := unpack(raw)
	said := message{fields: fields}
	found := item{string(said.get(1)), said.num(2), fd}
	if err != nil || said.get(3) == nil {
		return found, err
	}
	known, _ := unpack(found.entry())
	mine := message{fields: known}
	if !bytes.Equal(mine.get(3), said.get(3)[:20]) || !bytes.Equal(mine.get(4), said.get(4)) {
		return found, fmt.Errorf("%s is not what was offered: %x %s, got %x %s", found.name, said.get(3), said.get(4),
			mine.get(3), mine.get(4))
	}
	return found, nil
}

// dead waits up to 5 s for a pidfd to tell that its process has ended.
func dead(pidfd int) bool {
	type pollfd struct {
		fd      int32
		events  int16
		revents int16
	}
	for began := time.Now(); pidfd >= 0 && time.Since(began) < 5*time.Second; time.Sleep(10 * time.Millisecond) {
		poll := pollfd{int32(pidfd), 1, 0}
		n, _, _ := syscall.Syscall(syscall.SYS_POLL, uintptr(unsafe.Pointer(&poll)), 1, 0)
		if n == 1 {
			return true
		}
	}
	return false
}

// --- the new side -----------------------------------------------------------------------------------------------

func take(path string) (*service, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	c := &channel{conn: conn.(*net.UnixConn)}
	defer c.conn.Close()
	c.limit(20)
	c.say(HELLO, nil, number(1, 1), number(2, 1), number(3, uint64(os.Getpid())), text(4, "go"))
	offer, err := c.expect(OFFER)
	if err != nil {
		return nil, err
	}
	pidfd := -1
	if len(offer.fds) == 1 {
		pidfd = offer.fds[0]
		defer syscall.Close(pidfd)
	}
	s := &service{path: path, generation: offer.num(2), control: -1}
	came, size := uint64(0), offer.num(4)
	for came < offer.num(3) || uint64(len(s.state)) < size {
		m, err := c.hear()
		if err != nil {
			return nil, err
		}
		switch m.kind {
		case STATE:
			s.state = append(s.state, m.get(1)...)
		case ITEMS:
			if m.num(1) != came {
				return nil, errors.New("items out of order")
			}
			for _, f := range m.fields {
				if f.tag != 2 {
					continue
				}
				found, err := verify(f.value, m.fds[0])
				if err != nil {
					c.say(ABORT, nil, text(1, "mismatch"), text(2, err.Error()))
					return nil, err
				}
				if found.kind == kindControl {
					s.control = found.fd
				} else if found.kind == kindListener || found.kind == kindFile {
					s.items = append(s.items, found)
				} else {
					syscall.Close(found.fd)
				}
				m.fds = m.fds[1:]
				came++
			}
			c.say(ACK, nil, number(1, came))
		default:
			return nil, fmt.Errorf("message %d while taking", m.kind)
		}
	}
	c.say(TAKEN, nil, number(1, came))
	c.say(READY, nil)
	var final []byte
	for {
		m, err := c.hear()
		if err != nil { // no commit can come any more: ours if the owner is dead, its if it lives
			if !dead(pidfd) {
				return nil, err
			}
			break
		}
		if m.kind == STATE {
			final = append(final, m.get(1)...)
		} else if m.kind == COMMIT {
			if m.num(1) == 1 {
				s.state = final
			}
			break
		} else {
			return nil, fmt.Errorf("message %d while waiting: %s", m.kind, m.get(2))
		}
	}
	if s.control >= 0 {
		syscall.Listen(s.control, 128)
	}
	c.say(SERVING, nil)
	return s, nil
}

// --- the old side -----------------------------------------------------------------------------------------------

func own(path string) (*service, error) {
	listener, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = syscall.Bind(listener, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	control, _ := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	syscall.Fchmod(control, 0o600)
	err = errors.Join(err, syscall.Listen(listener, 128), syscall.Bind(control, &syscall.SockaddrUnix{Name: path}),
		syscall.Listen(control, 128))
	return &service{path: path, generation: 1, items: []item{{"main", kindListener, listener}}, control: control}, err
}

// give offers the service to whoever connects, until one has it. A taker that fails is forgotten.
func (s *service) give(closeGate, reopenGate func()) {
	for {
		fd, _, err := syscall.Accept4(s.control, syscall.SOCK_CLOEXEC)
		if err != nil {
			continue
		}
		file := os.NewFile(uintptr(fd), "guest")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			continue
		}
		c := &channel{conn: conn.(*net.UnixConn)}
		c.limit(20)
		err = s.handOver(c, closeGate)
		c.conn.Close()
		if err == nil {
			return
		}
		reopenGate()
		report("failed", map[string]any{"sentence": err.Error()})
	}
}

func (s *service) handOver(c *channel, closeGate func()) error {
	credentials, err := syscall.GetsockoptUcred(int(descriptor(c.conn)), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	if err != nil || (credentials.Uid != 0 && int(credentials.Uid) != os.Geteuid()) {
		return errors.Join(c.say(REFUSED, nil, text(1, "untrusted")), errors.New("a stranger"))
	}
	hello, err := c.hear()
	if err != nil {
		return err
	}
	if hello.kind == REQUEST {
		body := fmt.Sprintf(`{"schema":1,"pid":%d,"state":"offering","generation":%d,"path":%q,"taker":null}`, os.Getpid(),
			s.generation, s.path)
		return errors.Join(c.say(RESPONSE, nil, text(1, "ok"), text(2, body)), errors.New("a question"))
	}
	if hello.kind != HELLO || hello.num(1) > 1 || hello.num(2) < 1 {
		return errors.Join(c.say(REFUSED, nil, text(1, "version"), number(4, 1), number(5, 1)), errors.New("another version"))
	}
	all := append([]item{}, s.items...)
	all = append(all, item{"fdhandoff.control", kindControl, s.control})
	c.say(OFFER, nil, number(1, 1), number(2, s.generation+1), number(3, uint64(len(all))),
		number(4, uint64(len(s.state))), number(5, uint64(os.Getpid())), text(6, "go"), number(9, 1))
	fields, fds := []field{number(1, 0)}, []int{}
	for _, i := range all { // few enough for one message
		fields, fds = append(fields, field{2, i.entry()}), append(fds, i.fd)
	}
	c.say(ITEMS, fds, fields...)
	for state := s.state; len(state) > 0; {
		piece := state[:min(len(state), 262144)]
		if err := c.say(STATE, nil, field{1, piece}); err != nil {
			return err
		}
		state = state[len(piece):]
	}
	for _, kind := range []byte{ACK, TAKEN, READY} {
		if _, err := c.expect(kind); err != nil {
			return err
		}
	}
	closeGate()
	if err := c.say(COMMIT, nil); err != nil {
		return err
	}
	if _, err := c.expect(SERVING); err != nil {
		report("unconfirmed", map[string]any{})
	}
	c.say(DRAINED, nil, number(1, 0))
	return nil
}
