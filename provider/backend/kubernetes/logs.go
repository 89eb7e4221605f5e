package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/openfaas/faas-provider/logs"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/faas-predict/faas-predict/provider/backend"
)

const (
	// maxLineBytes is where a longer log line is cut off.
	maxLineBytes = 16 << 10
	// untold bounds the lines that are read of each container when a query does not say how many.
	untold = 10_000
	// lookAgain is how often a follower looks for pods that are new.
	lookAgain = 500 * time.Millisecond
)

// Tail implements cluster.Workloads.
func (e *Engine) Tail(ctx context.Context, ref backend.Ref, id string, lines int) (string, error) {
	found, err := e.client.CoreV1().Pods(ref.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: functionLabel + "=" + ref.Name + "," + workloadLabel + "=" + id,
	})
	if err != nil {
		return "", translate(err)
	}
	slices.SortFunc(found.Items, func(a, b corev1.Pod) int {
		x, _ := endedAt(&a)
		y, _ := endedAt(&b)
		return y.Compare(x)
	})
	var out []string
	for _, pod := range found.Items {
		_, previous := endedAt(&pod)
		raw, err := e.client.CoreV1().Pods(ref.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
			Container: busy(&pod), Previous: previous, TailLines: new(int64(lines - len(out))), LimitBytes: new(int64(lines) * maxLineBytes),
		}).DoRaw(ctx)
		if err != nil {
			continue // a container that has not started yet has no log
		}
		for line := range strings.Lines(strings.ToValidUTF8(string(raw), "\ufffd")) {
			out = append(out, strings.TrimRight(line, "\r\n"))
		}
		if len(out) >= lines {
			break
		}
	}
	return strings.Join(out, "\n"), nil
}

// busy is the container that has something to say: the one that fetches a bundle as long as it does. What it said when
// it failed is in the pod's status.
func busy(pod *corev1.Pod) string {
	for _, s := range pod.Status.InitContainerStatuses {
		if s.State.Running != nil && s.RestartCount == 0 {
			return s.Name
		}
	}
	return containerName
}

// Logs implements cluster.Workloads.
func (e *Engine) Logs(ctx context.Context, query logs.Request) (<-chan logs.Message, error) {
	out := make(chan logs.Message)
	if query.Follow {
		go e.followLogs(ctx, query, out)
		return out, nil
	}
	pods, err := e.podsOf(query)
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(out)
		var all []logs.Message
		for _, pod := range pods {
			_ = e.stream(ctx, pod, query, false, time.Time{}, func(m logs.Message) bool { // a container that has not started has none
				all = append(all, m)
				return true
			})
		}
		slices.SortStableFunc(all, func(a, b logs.Message) int { return a.Timestamp.Compare(b.Timestamp) })
		if query.Tail > 0 {
			all = all[max(0, len(all)-query.Tail):]
		}
		for _, m := range all {
			select {
			case out <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (e *Engine) podsOf(query logs.Request) ([]*corev1.Pod, error) {
	pods, err := e.caches[query.Namespace].pods.List(labels.SelectorFromSet(labels.Set{functionLabel: query.Name}))
	if err != nil {
		return nil, err
	}
	if query.Instance != "" {
		pods = slices.DeleteFunc(slices.Clone(pods), func(p *corev1.Pod) bool { return p.Name != query.Instance })
	}
	return pods, nil
}

// followLogs reads every pod of the function, those too that come later, until ctx ends or the function has no record
// any more.
func (e *Engine) followLogs(ctx context.Context, query logs.Request, out chan<- logs.Message) {
	defer close(out)
	ctx, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	defer readers.Wait()
	defer cancel()
	send := func(m logs.Message) bool {
		select {
		case out <- m:
			return true
		case <-ctx.Done():
			return false
		}
	}
	reading := map[string]bool{}
	for {
		pods, err := e.podsOf(query)
		if err != nil {
			return
		}
		for _, pod := range pods {
			if !reading[pod.Name] {
				reading[pod.Name] = true
				readers.Go(func() { e.followPod(ctx, pod, query, send) })
			}
		}
		ref := backend.Ref{Namespace: query.Namespace, Name: query.Name}
		if _, err := e.caches[query.Namespace].records.Get(recordName(ref)); err != nil && len(pods) == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookAgain):
		}
	}
}

// followPod reads a pod's container, and the one after it when it was restarted, until the pod is gone.
func (e *Engine) followPod(ctx context.Context, pod *corev1.Pod, query logs.Request, send func(logs.Message) bool) {
	var last time.Time
	for {
		_ = e.stream(ctx, pod, query, true, last, func(m logs.Message) bool { // it is tried again below
			last = m.Timestamp
			return send(m)
		})
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookAgain):
		}
		if _, err := e.caches[query.Namespace].pods.Get(pod.Name); err != nil {
			return
		}
	}
}

// stream reads the lines of a pod's container that came after a time, until their end or until each says false.
func (e *Engine) stream(ctx context.Context, pod *corev1.Pod, query logs.Request, follow bool, after time.Time, each func(logs.Message) bool) error {
	options := &corev1.PodLogOptions{Container: containerName, Timestamps: true, Follow: follow}
	switch {
	case !after.IsZero():
		since := metav1.NewTime(after) // to the second: what was read of it is left out below
		options.SinceTime = &since
	case query.Tail > 0:
		options.TailLines = new(int64(query.Tail))
	case !follow:
		options.TailLines = new(int64(untold))
	}
	if query.Since != nil && after.IsZero() {
		since := metav1.NewTime(*query.Since)
		options.SinceTime = &since
	}
	raw, err := e.client.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, options).Stream(ctx)
	if err != nil {
		return err
	}
	defer raw.Close()
	lines := bufio.NewReaderSize(raw, maxLineBytes)
	for {
		line, err := readLine(lines)
		if len(line) > 0 {
			stamp, text, _ := strings.Cut(line, " ")
			at, parseErr := time.Parse(time.RFC3339Nano, stamp)
			if parseErr != nil {
				at, text = time.Now(), line
			}
			fresh := at.After(after) && (query.Since == nil || !at.Before(*query.Since))
			if fresh && !each(logs.Message{Name: query.Name, Namespace: query.Namespace, Instance: pod.Name, Timestamp: at, Text: text}) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// readLine returns the next line without its end, cut off where it is too long.
func readLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	text := string(bytes.ToValidUTF8(bytes.TrimRight(line, "\r\n"), []byte("\ufffd")))
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = r.ReadSlice('\n')
	}
	return text, err
}
