package process

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is a directory that obeys two of the kernel's rules for version 2: a process is in one
// group, and a group with processes in it hands down no controllers. It shows what the provider
// writes and in which order. It does not show that a kernel takes it, nor that limits then hold:
// TestKernelLetsTheProviderHandDownFromALeaf does the first where there is such a kernel.
type hierarchy string

func newHierarchy(t *testing.T, controllers string, processes ...int) (hierarchy, *cgroups) {
	t.Helper()
	own := t.TempDir()
	must(t, os.WriteFile(filepath.Join(own, "cgroup.controllers"), []byte(controllers), 0o644))
	must(t, os.WriteFile(filepath.Join(own, "cgroup.subtree_control"), nil, 0o644))
	h := hierarchy(own)
	c := newCgroups("test")
	c.write = h.write
	for _, pid := range processes {
		must(t, h.write(filepath.Join(own, "cgroup.procs"), strconv.Itoa(pid)))
	}
	return h, c
}

// words are what a file of the hierarchy holds.
func (h hierarchy) words(file ...string) []string {
	raw, _ := os.ReadFile(filepath.Join(append([]string{string(h)}, file...)...))
	return strings.Fields(string(raw))
}

func (h hierarchy) write(file, value string) error {
	dir, name := filepath.Split(file)
	switch name {
	case "cgroup.procs":
		leave := func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.Name() != name {
				return err
			}
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			stay := slices.DeleteFunc(strings.Fields(string(raw)), func(pid string) bool { return pid == value })
			return os.WriteFile(path, []byte(strings.Join(stay, "\n")), 0o644)
		}
		if err := filepath.WalkDir(string(h), leave); err != nil {
			return err
		}
		raw, _ := os.ReadFile(file)
		value = string(raw) + "\n" + value
	case "cgroup.subtree_control":
		if procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")); len(strings.TrimSpace(string(procs))) > 0 {
			return &fs.PathError{Op: "write", Path: file, Err: unix.EBUSY}
		}
		raw, _ := os.ReadFile(file)
		handed := strings.Fields(string(raw))
		for change := range strings.FieldsSeq(value) {
			handed = slices.DeleteFunc(handed, func(controller string) bool { return controller == change[1:] })
			if change[0] == '+' {
				handed = append(handed, change[1:])
			}
		}
		value = strings.Join(handed, " ")
	}
	return os.WriteFile(file, []byte(value), 0o644)
}

func TestProviderLeavesItsGroupToHandDownFromIt(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	h, c := newHierarchy(t, "cpuset cpu memory pids", os.Getpid())
	must(t, c.openV2(string(h)))
	if got := h.words(providerLeaf, "cgroup.procs"); !slices.Equal(got, []string{self}) {
		t.Errorf("in the leaf: %v", got)
	}
	for _, group := range []string{".", c.name} {
		if got := h.words(group, "cgroup.subtree_control"); !slices.Equal(got, []string{"memory", "cpu"}) {
			t.Errorf("%s hands down %v", group, got)
		}
	}
	lacking, err := c.prepare("iris", limits{memory: 64 << 20, cpu: 500})
	must(t, err)
	memory, cpu := h.words(c.name, "iris", "memory.max"), h.words(c.name, "iris", "cpu.max")
	if lacking != "" || !slices.Equal(memory, []string{"67108864"}) || !slices.Equal(cpu, []string{"50000", "100000"}) {
		t.Errorf("limits %v and %v, lacking %q", memory, cpu, lacking)
	}
	c.close()
	if got := h.words("cgroup.procs"); !slices.Equal(got, []string{self}) || len(h.words("cgroup.subtree_control")) != 0 {
		t.Errorf("after the end: %v in the group, which hands down %v", got, h.words("cgroup.subtree_control"))
	}
}

func TestProviderStaysWhereControllersAreHandedDownAlready(t *testing.T) {
	h, c := newHierarchy(t, "cpuset cpu memory")
	// Handed down with a process in the group, as only the hierarchy's root may.
	must(t, h.write(filepath.Join(string(h), "cgroup.subtree_control"), "+cpuset +memory +cpu"))
	must(t, h.write(filepath.Join(string(h), "cgroup.procs"), strconv.Itoa(os.Getpid())))
	must(t, c.openV2(string(h)))
	if _, err := os.Stat(filepath.Join(string(h), providerLeaf)); err == nil {
		t.Error("the provider made a leaf for nothing")
	}
	c.close()
	if got := h.words("cgroup.subtree_control"); len(got) != 3 {
		t.Errorf("after the end it hands down %v", got)
	}
}

func TestCpusetIsNotTakenForCPU(t *testing.T) {
	h, c := newHierarchy(t, "cpuset cpu memory")
	must(t, h.write(filepath.Join(string(h), "cgroup.subtree_control"), "+cpuset +memory"))
	must(t, c.openV2(string(h)))
	if got := h.words("cgroup.subtree_control"); !slices.Contains(got, "cpu") {
		t.Errorf("it hands down %v", got)
	}
}

func TestGroupThatIsSharedIsNotDivided(t *testing.T) {
	h, c := newHierarchy(t, "cpu memory", os.Getpid(), os.Getppid())
	err := c.openV2(string(h))
	if err == nil || !strings.Contains(err.Error(), "must be alone") || !strings.Contains(err.Error(), "Delegate=yes") {
		t.Errorf("got %v", err)
	}
	if got := h.words("cgroup.procs"); len(got) != 2 {
		t.Errorf("in the group: %v", got)
	}
	lacking, err := c.prepare("iris", limits{memory: 64 << 20, cpu: 500})
	must(t, err)
	if !strings.Contains(lacking, "memory") || !strings.Contains(lacking, "cpu limit is not enforced") {
		t.Errorf("lacking: %q", lacking)
	}
	if lacking, err := c.prepare("rose", limits{}); err != nil || lacking != "" {
		t.Errorf("without limits: %q %v", lacking, err)
	}
}

func TestOneControllerOfTwoIsUsed(t *testing.T) {
	h, c := newHierarchy(t, "memory pids", os.Getpid())
	if err := c.openV2(string(h)); err == nil || !strings.HasSuffix(err.Error(), "was not given the controllers: cpu") {
		t.Errorf("got %v", err)
	}
	lacking, err := c.prepare("iris", limits{memory: 64 << 20, cpu: 500})
	must(t, err)
	if got := h.words(c.name, "iris", "memory.max"); !slices.Equal(got, []string{"67108864"}) || lacking != "the cpu limit is not enforced" {
		t.Errorf("memory.max is %v, lacking %q", got, lacking)
	}
}

// unifiedGroup makes a group of version 2 in the machine's own hierarchy that is given a controller,
// and moves this process into it for the test. ok is false where that cannot be had.
func unifiedGroup(t *testing.T) (group, controller string, ok bool) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	var root string
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[2] == "cgroup2" {
			root = f[1]
		}
	}
	if root == "" {
		return "", "", false
	}
	// What the root hands down is the machine's, and this test may run twice at a time on it.
	lock, err := os.Open(root)
	must(t, err)
	t.Cleanup(func() { lock.Close() })
	must(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	before := filepath.Join(root, ownCgroups()[""])
	raw, _ := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	offered := strings.Fields(string(raw))
	if len(offered) == 0 {
		return "", "", false
	}
	controller = offered[0]
	handed, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control"))
	must(t, err)
	if !slices.Contains(strings.Fields(string(handed)), controller) {
		if os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0o644) != nil {
			return "", "", false
		}
		t.Cleanup(func() {
			must(t, os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("-"+controller), 0o644))
		})
	}
	group = filepath.Join(root, fmt.Sprintf("faas-predict-test-%d", os.Getpid()))
	if os.Mkdir(group, 0o755) != nil {
		return "", "", false
	}
	t.Cleanup(func() { must(t, os.Remove(group)) })
	if os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644) != nil {
		return "", "", false
	}
	t.Cleanup(func() {
		must(t, os.WriteFile(filepath.Join(before, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o644))
	})
	return group, controller, true
}

// The kernel's own word on the rule that hierarchy imitates, with whatever controller it has. That
// memory.max and cpu.max then hold is not shown here: TestLimitsHoldFromTheFirstInstruction reads
// them where the machine has these controllers in version 2.
func TestKernelLetsTheProviderHandDownFromALeaf(t *testing.T) {
	group, controller, ok := unifiedGroup(t)
	if !ok {
		t.Log("no hierarchy of version 2 that may be written: the rule is shown by imitation only")
		return
	}
	c := newCgroups("test")
	if err := c.enable(group, []string{controller}); err == nil {
		t.Errorf("the kernel handed %s down from a group with a process", controller)
	}
	must(t, c.handDown(group, []string{controller}))
	if got := hierarchy(group).words("cgroup.subtree_control"); !slices.Equal(got, []string{controller}) {
		t.Errorf("it hands down %v", got)
	}
	if own := ownCgroups()[""]; filepath.Base(own) != providerLeaf {
		t.Errorf("the provider is in %s", own)
	}
	must(t, os.Mkdir(filepath.Join(group, c.name), 0o755))
	must(t, c.enable(filepath.Join(group, c.name), []string{controller}))
	c.v2 = filepath.Join(group, c.name)
	_, err := c.prepare("iris", limits{})
	must(t, err)
	cmd := exec.Command("/bin/sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	must(t, c.start(cmd, "iris", limits{}))
	if got := hierarchy(c.v2).words("iris", "cgroup.procs"); !slices.Equal(got, []string{strconv.Itoa(cmd.Process.Pid)}) {
		t.Errorf("in the function's group: %v, the function is %d", got, cmd.Process.Pid)
	}
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	c.remove("iris")
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the function outlived its group")
		_ = cmd.Process.Kill()
		<-gone
	}
	c.close()
	if own := ownCgroups()[""]; filepath.Base(own) != filepath.Base(group) {
		t.Errorf("after the end the provider is in %s", own)
	}
	if left, _ := filepath.Glob(filepath.Join(group, "*", "cgroup.procs")); len(left) != 0 {
		t.Errorf("groups left: %v", left)
	}
}
