// Frames and fields, as docs/reference/protocol.md describes them.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

const (
	HELLO = iota + 1
	OFFER
	ITEMS
	ACK
	STATE
	TAKEN
	READY
	COMMIT
	SERVING
	PROGRESS
	DRAINED
	ABORT
	REFUSED
	REQUEST
	EVENT
	RESPONSE
)

const payloadMax = 1 << 20

var order = binary.BigEndian

type field struct {
	tag   uint16
	value []byte
}

type message struct {
	kind   byte
	fields []field
	fds    []int
}

func number(tag uint16, value uint64) field {
	return field{tag, order.AppendUint64(nil, value)}
}

func text(tag uint16, value string) field { return field{tag, []byte(value)} }

func pack(fields []field) []byte {
	var out []byte
	for _, f := range fields {
		out = order.AppendUint16(out, f.tag)
		out = order.AppendUint32(out, uint32(len(f.value)))
		out = append(out, f.value...)
	}
	return out
}

func unpack(data []byte) ([]field, error) {
	var found []field
	for len(data) > 0 {
		if len(data) < 6 || uint64(order.Uint32(data[2:])) > uint64(len(data)-6) {
			return nil, errors.New("a payload ends inside a field")
		}
		size := order.Uint32(data[2:])
		found = append(found, field{order.Uint16(data), data[6 : 6+size]})
		data = data[6+size:]
	}
	return found, nil
}

func (m message) get(tag uint16) []byte {
	for _, f := range m.fields {
		if f.tag == tag {
			return f.value
		}
	}
	return nil
}

func (m message) num(tag uint16) uint64 {
	if value := m.get(tag); len(value) == 8 {
		return order.Uint64(value)
	}
	return 0
}

// channel carries messages over a connected Unix stream socket.
type channel struct {
	conn   *net.UnixConn
	buffer []byte
	fds    []int
}

func (c *channel) say(kind byte, fds []int, fields ...field) error {
	payload := pack(fields)
	frame := append([]byte("FDHO"), kind, 0)
	frame = order.AppendUint16(frame, uint16(len(fds)))
	frame = order.AppendUint32(frame, uint32(len(payload)))
	frame = append(frame, payload...)
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	sent, _, err := c.conn.WriteMsgUnix(frame, oob, nil)
	if err == nil && sent < len(frame) {
		_, err = c.conn.Write(frame[sent:])
	}
	return err
}

// hear returns the next message; its descriptors are the caller's.
func (c *channel) hear() (message, error) {
	for {
		m, whole, err := c.next()
		if whole || err != nil {
			return m, err
		}
		chunk, oob := make([]byte, 65536), make([]byte, syscall.CmsgSpace(253*4))
		n, oobn, flags, _, err := c.conn.ReadMsgUnix(chunk, oob)
		if controls, bad := syscall.ParseSocketControlMessage(oob[:oobn]); bad == nil {
			for _, control := range controls {
				rights, _ := syscall.ParseUnixRights(&control)
				c.fds = append(c.fds, rights...)
			}
		}
		if err != nil {
			return m, err
		}
		if flags&syscall.MSG_CTRUNC != 0 {
			return m, errors.New("descriptors were lost")
		}
		if n == 0 {
			return m, errors.New("the peer hung up")
		}
		c.buffer = append(c.buffer, chunk[:n]...)
	}
}

func (c *channel) next() (m message, whole bool, err error) {
	if len(c.buffer) < 12 {
		return m, false, nil
	}
	if string(c.buffer[:4]) != "FDHO" || c.buffer[5] != 0 {
		return m, false, errors.New("not this protocol")
	}
	count, size := int(order.Uint16(c.buffer[6:])), order.Uint32(c.buffer[8:])
	if size > payloadMax || count > 252 || count > len(c.fds) {
		return m, false, fmt.Errorf("a bad frame: %d bytes, %d descriptors of %d", size, count, len(c.fds))
	}
	if uint32(len(c.buffer)-12) < size {
		return m, false, nil
	}
	m.kind = c.buffer[4]
	m.fields, err = unpack(c.buffer[12 : 12+size])
	m.fds, c.fds = c.fds[:count:count], c.fds[count:]
	c.buffer = c.buffer[12+size:]
	if len(c.buffer) == 0 && len(c.fds) > 0 {
		return m, false, errors.New("descriptors that belong to no message")
	}
	return m, err == nil, err
}

func (c *channel) expect(kind byte) (message, error) {
	m, err := c.hear()
	if err == nil && m.kind != kind {
		err = fmt.Errorf("message %d where %d was expected: %s %s", m.kind, kind, m.get(1), m.get(2))
	}
	return m, err
}

func (c *channel) limit(seconds int) {
	c.conn.SetDeadline(time.Now().Add(time.Duration(seconds) * time.Second))
}
