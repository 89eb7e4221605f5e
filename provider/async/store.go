package async

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/faas-predict/faas-predict/provider/backend"
)

// The streams. Their names and subjects are a contract with what is stored.
const (
	callStream   = "FAAS_PREDICT_CALLS"   // faas.calls.NAMESPACE.NAME
	resultStream = "FAAS_PREDICT_RESULTS" // faas.results.NAMESPACE.NAME.UID
	doneStream   = "FAAS_PREDICT_DONE"    // faas.done.UID: reported
	deadStream   = "FAAS_PREDICT_DEAD"    // faas.dead.NAMESPACE.NAME.UID
)

func callSubject(ref backend.Ref) string { return "faas.calls." + ref.Namespace + "." + ref.Name }
func resultSubject(ref backend.Ref, uid string) string {
	return "faas.results." + ref.Namespace + "." + ref.Name + "." + uid
}
func doneSubject(uid string) string { return "faas.done." + uid }
func deadSubject(ref backend.Ref, uid string) string {
	return "faas.dead." + ref.Namespace + "." + ref.Name + "." + uid
}

const (
	storeTimeout = 10 * time.Second
	// duplicates is how long a call that its caller has named is recognised when it comes again.
	duplicates = 2 * time.Minute
	// doneAge and doneMax bound how long it is remembered that a call was reported. That matters only while
	// the call itself may be found again, which takes a provider that is killed, and that long to come back.
	doneAge = 24 * time.Hour
	doneMax = 1 << 17
	// messageRoom is what a message may have beyond its body: heads of requests, and what a dead letter adds.
	messageRoom = 1 << 20
	// deadRoom is what a dead letter adds at most to the message that it is about.
	deadRoom = 8 << 10
	// consumerAge is how long JetStream keeps the consumer of a function without calls.
	consumerAge = 24 * time.Hour
	// inRetry bounds how many calls of a function wait for another attempt: those behind them wait as well.
	inRetry = 1024
)

// ackWait is how long a message stays with a process that does not say that it still works on it. Tests
// shorten it.
var ackWait = 10 * time.Second

// store is the connection to JetStream and its streams.
type store struct {
	embedded                   *server.Server // nil with an outside NATS
	conn                       *nats.Conn
	js                         jetstream.JetStream
	calls, results, done, dead jetstream.Stream
}

func openStore(s *Settings) (_ *store, err error) {
	out := &store{}
	defer func() {
		if err != nil {
			out.close()
		}
	}()
	options := []nats.Option{
		nats.Name("faas-predict"), nats.MaxReconnects(-1),
		nats.ReconnectBufSize(-1), // what cannot be sent now has failed; it must not be stored after its caller was told so
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				slog.Warn("NATS is gone: asynchronous calls wait for it", "error", err)
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { slog.Warn("NATS", "error", err) }),
	}
	if s.URL == "" {
		if out.embedded, err = embed(s); err != nil {
			return nil, err
		}
		options = append(options, nats.InProcessServer(out.embedded))
	} else {
		if s.Credentials != "" {
			options = append(options, nats.UserCredentials(s.Credentials))
		}
		if s.CA != "" {
			options = append(options, nats.RootCAs(s.CA))
		}
	}
	if out.conn, err = nats.Connect(s.URL, options...); err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	if out.js, err = jetstream.New(out.conn, jetstream.WithDefaultTimeout(storeTimeout)); err != nil {
		return nil, fmt.Errorf("connect to JetStream: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	queue := jetstream.StreamConfig{
		Retention: jetstream.WorkQueuePolicy, Discard: jetstream.DiscardNew, Storage: jetstream.FileStorage,
		MaxMsgs: s.MaxMessages, MaxBytes: s.MaxBytes, Duplicates: duplicates,
	}
	for _, c := range []struct {
		stream  *jetstream.Stream
		name    string
		subject string
		config  jetstream.StreamConfig
	}{
		{&out.calls, callStream, "faas.calls.*.*", queue},
		{&out.results, resultStream, "faas.results.*.*.*", queue},
		{&out.done, doneStream, "faas.done.*", jetstream.StreamConfig{
			Storage: jetstream.FileStorage, MaxMsgs: doneMax, MaxAge: doneAge, MaxMsgsPerSubject: 1, Duplicates: time.Second,
		}},
		{&out.dead, deadStream, "faas.dead.*.*.*", jetstream.StreamConfig{
			Storage: jetstream.FileStorage, MaxMsgs: s.DeadMax, MaxBytes: s.MaxBytes, MaxAge: s.DeadAge, MaxMsgsPerSubject: 1, Duplicates: time.Second,
		}},
	} {
		c.config.Name, c.config.Subjects = c.name, []string{c.subject}
		if existing, err := out.js.Stream(ctx, c.name); err == nil {
			// Whoever made the stream of an outside NATS decides how often and where it is kept.
			was := existing.CachedInfo().Config
			c.config.Replicas, c.config.Placement = was.Replicas, was.Placement
		}
		if *c.stream, err = out.js.CreateOrUpdateStream(ctx, c.config); err != nil {
			return nil, fmt.Errorf("make stream %s: %w", c.name, err)
		}
	}
	return out, nil
}

// embed starts a server that no port leads to.
func embed(s *Settings) (*server.Server, error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of asynchronous calls: %w", err)
	}
	embedded, err := server.NewServer(&server.Options{
		ServerName: "faas-predict", DontListen: true, NoSigs: true, NoSystemAccount: true,
		JetStream: true, StoreDir: s.Dir, JetStreamMaxMemory: 1 << 20, JetStreamMaxStore: math.MaxInt64 / 2,
		MaxPayload:   int32(min(s.MaxBodyBytes+messageRoom, server.MAX_PAYLOAD_MAX_SIZE)), // 64 MiB
		SyncInterval: max(s.Sync, time.Millisecond), SyncAlways: s.Sync == 0,
	})
	if err != nil {
		return nil, fmt.Errorf("start the embedded NATS: %w", err)
	}
	embedded.SetLoggerV2(natsLog{}, false, false, false)
	embedded.Start()
	if !embedded.ReadyForConnections(storeTimeout) {
		embedded.Shutdown()
		embedded.WaitForShutdown()
		return nil, fmt.Errorf("the embedded NATS does not start on %s", s.Dir)
	}
	return embedded, nil
}

func (s *store) close() {
	if s.conn != nil {
		_ = s.conn.FlushTimeout(time.Second) // acknowledgements on their way
		s.conn.Close()
	}
	if s.embedded != nil {
		s.embedded.Shutdown()
		s.embedded.WaitForShutdown()
	}
}

// publish stores a message before it returns.
func (s *store) publish(ctx context.Context, subject string, payload []byte, options ...jetstream.PublishOpt) error {
	if int64(len(payload)) > s.conn.MaxPayload()-deadRoom {
		return fmt.Errorf("%w: with its headers it has %d bytes, and NATS takes %d", ErrTooLarge, len(payload), s.conn.MaxPayload()-deadRoom)
	}
	_, err := s.js.Publish(ctx, subject, payload, options...)
	api := (*jetstream.APIError)(nil)
	switch {
	case err == nil:
		return nil
	case tooLarge(err):
		return fmt.Errorf("%w: %w", ErrTooLarge, err)
	case errors.As(err, &api) && (api.ErrorCode == codeStoreFailed || api.ErrorCode == codeInsufficientResources):
		return fmt.Errorf("%w (%s)", ErrFull, api.Description)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// Codes of JetStream that its client has no names for.
const (
	codeStoreFailed           jetstream.ErrorCode = 10077 // which a limit of the stream makes it
	codeInsufficientResources jetstream.ErrorCode = 10023
)

// first stores a message unless its subject has one.
func (s *store) first(ctx context.Context, subject string, payload []byte) error {
	err := s.publish(ctx, subject, payload, jetstream.WithExpectLastSequencePerSubject(0))
	if api := (*jetstream.APIError)(nil); errors.As(err, &api) &&
		(api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant) {
		return nil
	}
	return err
}

// has reports whether the stream has a message of that subject.
func has(ctx context.Context, stream jetstream.Stream, subject string) (bool, error) {
	_, err := stream.GetLastMsgForSubject(ctx, subject)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, nil
	}
	return err == nil, err
}

// waiting lists the functions that have messages in a step's stream.
func (s *store) waiting(ctx context.Context, step stage) ([]backend.Ref, error) {
	info, err := s.stream(step).Info(ctx, jetstream.WithSubjectFilter(step.prefix()+">"))
	if err != nil {
		return nil, fmt.Errorf("list stored calls: %w", err)
	}
	seen := map[backend.Ref]bool{}
	var out []backend.Ref
	for subject := range info.State.Subjects {
		parts := strings.Split(strings.TrimPrefix(subject, step.prefix()), ".")
		if ref := (backend.Ref{Namespace: parts[0], Name: parts[min(1, len(parts)-1)]}); len(parts) > 1 && !seen[ref] {
			seen[ref] = true
			out = append(out, ref)
		}
	}
	return out, nil
}

func (s *store) stream(step stage) jetstream.Stream {
	if step == reporting {
		return s.results
	}
	return s.calls
}

// consumer is the one that all providers share for a function's messages.
func (s *store) consumer(ctx context.Context, key laneKey) (jetstream.Consumer, error) {
	subject := callSubject(key.ref)
	if key.step == reporting {
		subject = resultSubject(key.ref, "*")
	}
	return s.stream(key.step).CreateOrUpdateConsumer(ctx, jetstream.ConsumerConfig{
		Durable:       key.ref.Namespace + "_" + key.ref.Name,
		FilterSubject: subject,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       ackWait,
		MaxAckPending: inRetry,
		// What is asked for nothing any more is a deleted function's. A call that waited longer than this only
		// has its attempts counted from the beginning.
		InactiveThreshold: consumerAge,
	})
}

// natsLog passes on what the embedded server has to complain about.
type natsLog struct{}

func (natsLog) Noticef(format string, v ...any) { slog.Debug("nats: " + fmt.Sprintf(format, v...)) }
func (natsLog) Warnf(format string, v ...any)   { slog.Warn("nats: " + fmt.Sprintf(format, v...)) }
func (natsLog) Errorf(format string, v ...any)  { slog.Error("nats: " + fmt.Sprintf(format, v...)) }
func (natsLog) Fatalf(format string, v ...any)  { slog.Error("nats: " + fmt.Sprintf(format, v...)) }
func (natsLog) Debugf(string, ...any)           {}
func (natsLog) Tracef(string, ...any)           {}
