package swarm

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"github.com/faas-predict/faas-predict/provider/backend"
	"github.com/faas-predict/faas-predict/provider/backend/cluster"
)

func service(id string, replicas uint64) swarm.Service {
	return swarm.Service{ID: "service-" + id, Spec: swarm.ServiceSpec{
		Annotations: swarm.Annotations{Labels: map[string]string{
			workloadLabel: id, nameLabel: "iris", namespaceLabel: "openfaas-fn", leaseLabel: "1700000000",
		}},
		Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: &replicas}},
	}}
}

func task(id, service string, state, desired swarm.TaskState, problem string, age time.Duration) swarm.Task {
	t := swarm.Task{ID: id, ServiceID: "service-" + service, DesiredState: desired}
	t.Status = swarm.TaskStatus{State: state, Err: problem, Timestamp: time.Unix(1700000000, 0).Add(-age)}
	attachment := swarm.NetworkAttachment{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.9." + id + "/24")}}
	attachment.Network.Spec.Name = "functions"
	other := swarm.NetworkAttachment{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.1." + id + "/24")}}
	other.Network.Spec.Name = "ingress"
	t.NetworksAttachments = []swarm.NetworkAttachment{other, attachment}
	return t
}

func TestAServicesTasksAreRead(t *testing.T) {
	const running, shutdown = swarm.TaskStateRunning, swarm.TaskStateShutdown
	tasks := []swarm.Task{
		task("1", "a", running, running, "", 9*time.Second),
		task("2", "a", swarm.TaskStateStarting, running, "", 8*time.Second),
		task("3", "a", running, shutdown, "", 7*time.Second),  // leaves
		task("4", "a", shutdown, shutdown, "", 6*time.Second), // was asked to
		task("5", "a", swarm.TaskStateFailed, shutdown, "task: non-zero exit (1)", 5*time.Second),
		task("6", "a", swarm.TaskStateRejected, shutdown, "No such image: iris:1", 4*time.Second),
		task("7", "b", swarm.TaskStatePending, running, "no suitable node (insufficient resources on 1 node)", 3*time.Second),
	}
	got := statuses([]swarm.Service{service("a", 2), service("b", 1), {Spec: swarm.ServiceSpec{}}}, tasks, "functions")
	want := map[backend.Ref][]cluster.Status{{Namespace: "openfaas-fn", Name: "iris"}: {
		{
			ID: "a", Replicas: 2, Lease: 1700000000, Failures: 2, Reason: "container 6 ended: No such image: iris:1",
			Endpoints: []cluster.Endpoint{{Instance: "1", Address: "10.0.9.1:8080"}, {Instance: "2", Address: "10.0.9.2:8080"}},
		},
		{ID: "b", Replicas: 1, Lease: 1700000000, Reason: "no suitable node (insufficient resources on 1 node)"},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAnErasedRecordIsNone(t *testing.T) {
	labels := map[string]string{nameLabel: "iris", namespaceLabel: "openfaas-fn", recordLabel: "{}"}
	kept := swarm.Config{Meta: swarm.Meta{Version: swarm.Version{Index: 7}}, Spec: swarm.ConfigSpec{Annotations: swarm.Annotations{Labels: labels}}}
	if record, revision := recordOf(&kept); string(record) != "{}" || revision != "7" {
		t.Errorf("%s of %s", record, revision)
	}
	kept.Spec.Labels[erasedLabel] = "true"
	if got := functions([]swarm.Config{kept}, nil, nil, "functions"); len(got) != 0 {
		t.Errorf("an erased record is %+v", got)
	}
}

func TestNamesFitSwarm(t *testing.T) {
	e := &Engine{network: "functions"}
	long := strings.Repeat("x", 63)
	names := []string{
		serviceName(backend.Ref{Name: long}, "abcdefghij"),
		serviceName(backend.Ref{Name: strings.Repeat("x", 49) + "-" + "yz"}, "abcdefghij"),
		e.objectName(kindNamespace, long, long),
		e.objectName("secret", long, long) + "-12345678",
	}
	for i, name := range names {
		most := 64
		if i < 2 {
			most = 63
		}
		if len(name) > most || strings.Contains(name, "--") {
			t.Errorf("%s has %d characters", name, len(name))
		}
	}
	if e.objectName("secret", "a", "b-c") == e.objectName("secret", "a-b", "c") {
		t.Error("two secrets have one name")
	}
	other := &Engine{network: "others"}
	if e.objectName("secret", "a", "b") == other.objectName("secret", "a", "b") {
		t.Error("two providers' secrets have one name")
	}
}

// frame is what the engine sends for a line.
func frame(text string) []byte {
	out := []byte{1, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(out[4:], uint32(len(text)))
	return append(out, text...)
}

func TestLogLinesAreRead(t *testing.T) {
	details := "com.docker.swarm.node.id=n,com.docker.swarm.service.id=s,com.docker.swarm.task.id=t1 "
	stream := slices.Concat(
		frame("2026-11-24T10:00:00.5Z "+details+"first line\n"),
		frame("2026-11-24T10:00:01Z "+details+"\n"),
		frame("no time at all\n"),
		frame("2026-11-24T10:00:02Z "+details+"not UTF-8 \xff, and spaces  kept\r\n"),
	)
	var got []string
	err := frames(bytes.NewReader(stream), func(line string) bool {
		if m, ok := parseLine(line); ok {
			got = append(got, m.Instance+" "+m.Timestamp.Format("05.0")+" "+m.Text)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"t1 00.5 first line", "t1 01.0 ", "t1 02.0 not UTF-8 \ufffd, and spaces  kept"}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if err := frames(bytes.NewReader(stream[:20]), func(string) bool { return true }); err == nil {
		t.Error("a frame that is cut off is no error")
	}
}

func FuzzLogStream(f *testing.F) {
	f.Add(frame("2026-11-24T10:00:00Z com.docker.swarm.task.id=t text\n"))
	f.Add([]byte{1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 'x'})
	f.Fuzz(func(t *testing.T, stream []byte) {
		_ = frames(bytes.NewReader(stream), func(line string) bool {
			if m, ok := parseLine(line); ok && m.Instance == "" {
				t.Error("a line from nobody")
			}
			return true
		})
	})
}
