package swarm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"
	"github.com/openfaas/faas-provider/logs"

	"github.com/faas-predict/faas-predict/provider/backend"
)

const (
	maxLineBytes = 16 << 10 // where a longer line is cut into several
	maxLines     = 10000    // read of one service at once
)

// Tail implements cluster.Workloads.
func (e *Engine) Tail(ctx context.Context, ref backend.Ref, id string, lines int) (string, error) {
	found, err := e.read(ctx, ref, serviceName(ref, id), lines, time.Time{})
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for _, l := range found[max(0, len(found)-lines):] {
		out.WriteString(l.Text)
		out.WriteByte('\n')
	}
	return out.String(), nil
}

// Logs implements cluster.Workloads.
func (e *Engine) Logs(ctx context.Context, query logs.Request) (<-chan logs.Message, error) {
	ref := backend.Ref{Namespace: query.Namespace, Name: query.Name}
	services, err := e.services(ctx, ref)
	if err != nil {
		return nil, err
	}
	since := time.Time{}
	if query.Since != nil {
		since = *query.Since
	}
	begun := time.Now()
	wanted := func(m logs.Message) bool { return query.Instance == "" || query.Instance == m.Instance }
	var past []logs.Message
	for _, s := range services {
		lines := maxLines
		if query.Tail > 0 && query.Instance == "" {
			lines = min(lines, query.Tail)
		}
		found, err := e.read(ctx, ref, s.ID, lines, since)
		if err != nil && !errors.Is(err, backend.ErrNotFound) {
			return nil, err
		}
		past = append(past, slices.DeleteFunc(found, func(m logs.Message) bool { return !wanted(m) })...)
	}
	slices.SortStableFunc(past, func(x, y logs.Message) int { return x.Timestamp.Compare(y.Timestamp) })
	if query.Tail > 0 {
		past = past[max(0, len(past)-query.Tail):]
	}
	out := make(chan logs.Message)
	go func() {
		defer close(out)
		last := begun
		for _, m := range past {
			select {
			case out <- m:
				last = m.Timestamp
			case <-ctx.Done():
				return
			}
		}
		if query.Follow {
			e.followAll(ctx, ref, last, wanted, out)
		}
	}()
	return out, nil
}

// followAll sends what a function's services write after a time, those that it will have too, until ctx
// ends or the function is removed.
func (e *Engine) followAll(ctx context.Context, ref backend.Ref, after time.Time, wanted func(logs.Message) bool, out chan<- logs.Message) {
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	known := map[string]bool{}
	for {
		services, err := e.services(ctx, ref)
		if err == nil {
			config, err := e.config(ctx, ref)
			if err == nil && len(services) == 0 && config == nil {
				return
			}
		}
		for _, s := range services {
			if known[s.ID] {
				continue
			}
			known[s.ID] = true
			readers.Go(func() {
				err := e.each(ctx, ref, s.ID, client.ServiceLogsOptions{Follow: true, Since: stamp(after)}, func(m logs.Message) bool {
					if !wanted(m) || !m.Timestamp.After(after) {
						return true
					}
					select {
					case out <- m:
						return true
					case <-ctx.Done():
						return false
					}
				})
				if err != nil && ctx.Err() == nil {
					slog.Warn("a service's log cannot be followed", "service", s.Spec.Name, "error", err)
				}
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// stamp is a time as the engine reads it.
func stamp(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return strconv.FormatInt(at.Unix(), 10) + "." + strconv.Itoa(1e9 + at.Nanosecond())[1:]
}

// read returns the last lines of a service.
func (e *Engine) read(ctx context.Context, ref backend.Ref, service string, lines int, since time.Time) ([]logs.Message, error) {
	var out []logs.Message
	err := e.each(ctx, ref, service, client.ServiceLogsOptions{Tail: strconv.Itoa(lines), Since: stamp(since)}, func(m logs.Message) bool {
		if !m.Timestamp.Before(since) {
			out = append(out, m)
		}
		return len(out) < 4*maxLines // the engine's tail is of each container
	})
	slices.SortStableFunc(out, func(x, y logs.Message) int { return x.Timestamp.Compare(y.Timestamp) })
	return out, err
}

// each calls take with the lines of a service until it returns false.
func (e *Engine) each(ctx context.Context, ref backend.Ref, service string, options client.ServiceLogsOptions, take func(logs.Message) bool) error {
	options.ShowStdout, options.ShowStderr, options.Timestamps, options.Details = true, true, true, true
	stream, err := e.docker.ServiceLogs(ctx, service, options)
	if err != nil {
		return wrap(err, "read log")
	}
	defer stream.Close()
	return frames(stream, func(line string) bool {
		m, ok := parseLine(line)
		if !ok {
			return true
		}
		m.Name, m.Namespace = ref.Name, ref.Namespace
		return take(m)
	})
}

// frames reads the engine's stream of frames, a line or a part of one in each: a byte that says which
// output, three of nothing, four for the length, and the text.
func frames(stream io.Reader, take func(line string) bool) error {
	r := bufio.NewReader(stream)
	var head [8]byte
	var text bytes.Buffer
	for {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		length := int64(binary.BigEndian.Uint32(head[4:]))
		text.Reset()
		if _, err := io.CopyN(&text, r, min(length, 4*maxLineBytes)); err != nil {
			return err
		}
		if _, err := io.CopyN(io.Discard, r, max(0, length-4*maxLineBytes)); err != nil {
			return err
		}
		for line := range strings.SplitSeq(strings.TrimRight(text.String(), "\r\n"), "\n") {
			if !take(line) {
				return nil
			}
		}
	}
}

// parseLine takes a line with details apart: TIME KEY=VALUE,KEY=VALUE TEXT.
func parseLine(line string) (logs.Message, bool) {
	at, rest, _ := strings.Cut(line, " ")
	when, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return logs.Message{}, false
	}
	details, text, _ := strings.Cut(rest, " ")
	m := logs.Message{Timestamp: when, Text: strings.ToValidUTF8(strings.TrimSuffix(text, "\r"), "\ufffd")}
	for pair := range strings.SplitSeq(details, ",") {
		key, value, _ := strings.Cut(pair, "=")
		if key == "com.docker.swarm.task.id" {
			m.Instance, _ = url.QueryUnescape(value)
		}
	}
	return m, m.Instance != ""
}
