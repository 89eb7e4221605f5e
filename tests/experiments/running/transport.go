// Package running plays the experiments with the real programs: faas-predict serve with its issuer, a
// protected function behind fwatchdog, and clients of go-sdk that hold their tokens.
//
// The clients are sdk.Client with sdk.MemoryTokenCache, and each call is an InvokeFunction. Two things
// are ours. Below them is a round tripper that costs a fraction of net/http's, because clients, provider,
// watchdog and model share the machine's cores. And a cache shortens the lives of the tokens that it is
// given, because the issuer's are whole seconds and go-sdk drops a token ten seconds early; from there
// on go-sdk's own cache decides.
package running

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// transport is HTTP/1.1 for short requests and answers of a known length, over connections that stay.
// Of an answer's headers it keeps Server-Timing.
// It never sends a request twice: a connection that breaks is an error of the call on it.
type transport struct {
	address string
	idle    chan *conn // as many as there may be
}

type conn struct {
	net.Conn
	in  *bufio.Reader
	out []byte
}

// answerLimit bounds a call, so that a lost one ends the experiment and does not hang it.
const answerLimit = 20 * time.Second

func newTransport(address string, connections int) *transport {
	return &transport{address: address, idle: make(chan *conn, connections)}
}

// RoundTrip uses a connection that is free, or a new one. Whoever calls bounds how many are under way.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	var c *conn
	select {
	case c = <-t.idle:
	default:
		raw, err := net.DialTimeout("tcp", t.address, answerLimit)
		if err != nil {
			return nil, err
		}
		c = &conn{Conn: raw, in: bufio.NewReaderSize(raw, 8<<10)}
	}
	resp, err := c.roundTrip(req)
	if err != nil {
		c.Close()
		return nil, err
	}
	select {
	case t.idle <- c:
	default:
		c.Close()
	}
	return resp, nil
}

// CloseIdleConnections closes those that no call is on.
func (t *transport) CloseIdleConnections() {
	for {
		select {
		case c := <-t.idle:
			c.Close()
		default:
			return
		}
	}
}

func (c *conn) roundTrip(req *http.Request) (*http.Response, error) {
	c.out = append(c.out[:0], req.Method...)
	c.out = append(c.out, ' ')
	c.out = append(c.out, req.URL.RequestURI()...)
	c.out = append(c.out, " HTTP/1.1\r\nHost: "...)
	c.out = append(c.out, req.URL.Host...)
	for name, values := range req.Header {
		for _, value := range values {
			c.out = append(c.out, "\r\n"...)
			c.out = append(c.out, name...)
			c.out = append(c.out, ": "...)
			c.out = append(c.out, value...)
		}
	}
	c.out = append(c.out, "\r\nContent-Length: "...)
	c.out = strconv.AppendInt(c.out, max(0, req.ContentLength), 10)
	c.out = append(c.out, "\r\n\r\n"...)
	if req.Body != nil {
		head := len(c.out)
		body := bytes.NewBuffer(c.out)
		_, err := body.ReadFrom(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, err
		}
		if c.out = body.Bytes(); int64(len(c.out)-head) != req.ContentLength {
			return nil, fmt.Errorf("a body of %d bytes where %d were said", len(c.out)-head, req.ContentLength)
		}
	}
	if _, err := c.Write(c.out); err != nil {
		return nil, err
	}
	return c.answer(req)
}

var errAnswer = errors.New("an answer that this client does not read")

func (c *conn) answer(req *http.Request) (*http.Response, error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return nil, fmt.Errorf("%w: %q", errAnswer, line)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return nil, fmt.Errorf("%w: %q", errAnswer, line)
	}
	resp := &http.Response{StatusCode: status, Status: string(line[9:12]), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Request: req, ContentLength: -1}
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Server-Timing")) {
			resp.Header.Set("Server-Timing", string(bytes.TrimSpace(value)))
		}
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if resp.ContentLength, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 32); err != nil {
				return nil, fmt.Errorf("%w: %q", errAnswer, line)
			}
		}
	}
	if resp.ContentLength < 0 {
		return nil, fmt.Errorf("%w: it does not say how long it is", errAnswer)
	}
	body := make([]byte, resp.ContentLength)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}
