package process

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// limits are what a function may use, all its workers together. Zero means no limit.
type limits struct {
	memory int64 // bytes
	cpu    int64 // thousandths of a core
}

// cgroups places functions into control groups below the provider's own, so that limits hold for a
// function's watchdog and workers together. Version 2 is used where it is mounted with the
// controllers, else version 1. Where neither can be written, memory falls back to a limit for each
// process and cpu is not limited.
type cgroups struct {
	name   string // of our group; one a data directory
	v2     string // directory of our group in version 2's hierarchy, "" where that is not used
	memory string // directory of our group in the hierarchy that has the controller, "" without
	cpu    string
	left   departure
	write  func(file, value string) error // into a file of the kernel's
}

// departure is what a provider that went into a leaf undoes at its end.
type departure struct{ from, leaf, handedDown string }

const cgroupRoot = "/sys/fs/cgroup"

func newCgroups(name string) *cgroups {
	return &cgroups{name: "faas-predict-" + name, write: func(file, value string) error {
		return os.WriteFile(file, []byte(value), 0o644)
	}}
}

// openCgroups makes our group and removes groups that a killed provider left in it.
func openCgroups(name string) *cgroups {
	c := newCgroups(name)
	own := ownCgroups()
	reason := "there are none that this provider may use"
	if parent := filepath.Join(cgroupRoot, own[""]); isCgroup(parent, unix.CGROUP2_SUPER_MAGIC) {
		if err := c.openV2(parent); err != nil {
			reason = err.Error()
		}
	} else {
		c.memory = c.openV1("memory", own["memory"])
		c.cpu = c.openV1("cpu", own["cpu"])
	}
	if c.memory == "" || c.cpu == "" {
		slog.Warn("control groups cannot be used fully: limits of functions are not enforced as a whole", "memory", c.memory != "", "cpu", c.cpu != "", "because", reason)
	}
	return c
}

// ownCgroups reads where this process is: controller to path; "" is version 2's hierarchy.
func ownCgroups() map[string]string {
	out := map[string]string{}
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return out
	}
	defer f.Close()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		parts := strings.SplitN(scan.Text(), ":", 3)
		if len(parts) == 3 {
			for controller := range strings.SplitSeq(parts[1], ",") {
				out[controller] = parts[2]
			}
		}
	}
	return out
}

// openV2 makes our group below the provider's own, with those of the controllers memory and cpu
// that it gets. The error says what it did not get.
func (c *cgroups) openV2(parent string) error {
	offered, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the controllers of the provider's group: %w", err)
	}
	var wanted, lacking []string
	for _, controller := range []string{"memory", "cpu"} {
		if slices.Contains(strings.Fields(string(offered)), controller) {
			wanted = append(wanted, controller)
		} else {
			lacking = append(lacking, controller)
		}
	}
	if err := c.handDown(parent, wanted); err != nil {
		return err
	}
	dir := filepath.Join(parent, c.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.comeBack()
		return fmt.Errorf("make a control group below %s, which must be delegated to the provider: %w", parent, err)
	}
	if err := c.enable(dir, wanted); err != nil {
		os.Remove(dir)
		c.comeBack()
		return fmt.Errorf("hand down controllers in %s: %w", dir, err)
	}
	sweepCgroup(dir)
	c.v2 = dir
	if slices.Contains(wanted, "memory") {
		c.memory = dir
	}
	if slices.Contains(wanted, "cpu") {
		c.cpu = dir
	}
	if len(lacking) > 0 {
		return fmt.Errorf("the provider's group %s was not given the controllers: %s", parent, strings.Join(lacking, ", "))
	}
	return nil
}

// providerLeaf is where the provider goes in a group of its own.
const providerLeaf = "provider"

// handDown gives the children of the provider's group the controllers. The kernel refuses that to a
// group with processes in it, unless it is the hierarchy's root; then the provider goes into a leaf
// below. It moves nobody else: what shares the group with it was put there by somebody for a reason,
// and only a group that is the provider's alone was meant for it to divide.
func (c *cgroups) handDown(group string, controllers []string) error {
	handed, err := os.ReadFile(filepath.Join(group, "cgroup.subtree_control"))
	if err != nil {
		return fmt.Errorf("read what the provider's group hands down: %w", err)
	}
	missing := slices.DeleteFunc(slices.Clone(controllers), func(controller string) bool {
		return slices.Contains(strings.Fields(string(handed)), controller)
	})
	if err = c.enable(group, missing); !errors.Is(err, unix.EBUSY) {
		if err != nil {
			return fmt.Errorf("hand down controllers in %s, which must be delegated to the provider: %w", group, err)
		}
		return nil
	}
	leaf := filepath.Join(group, providerLeaf)
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		return fmt.Errorf("make a leaf for the provider: %w", err)
	}
	c.left = departure{from: group, leaf: leaf}
	if err := c.write(filepath.Join(leaf, "cgroup.procs"), strconv.Itoa(os.Getpid())); err != nil {
		c.comeBack()
		return fmt.Errorf("go into the leaf %s: %w", leaf, err)
	}
	if err := c.enable(group, missing); err != nil {
		c.comeBack()
		return fmt.Errorf("hand down controllers in %s, where the provider must be alone: start it in a group of its own, as systemd does with Delegate=yes: %w", group, err)
	}
	c.left.handedDown = "-" + strings.Join(missing, " -")
	return nil
}

func (c *cgroups) enable(group string, controllers []string) error {
	if len(controllers) == 0 {
		return nil
	}
	return c.write(filepath.Join(group, "cgroup.subtree_control"), "+"+strings.Join(controllers, " +"))
}

// comeBack undoes handDown, so that the group can be entered again by the next provider.
func (c *cgroups) comeBack() {
	if c.left.leaf == "" {
		return
	}
	if c.left.handedDown != "" {
		_ = c.write(filepath.Join(c.left.from, "cgroup.subtree_control"), c.left.handedDown)
	}
	_ = c.write(filepath.Join(c.left.from, "cgroup.procs"), strconv.Itoa(os.Getpid()))
	os.Remove(c.left.leaf)
	c.left = departure{}
}

func (c *cgroups) openV1(controller, own string) string {
	root := filepath.Join(cgroupRoot, controller)
	for _, parent := range []string{filepath.Join(root, own), root} {
		if !isCgroup(parent, unix.CGROUP_SUPER_MAGIC) {
			continue
		}
		dir := filepath.Join(parent, c.name)
		if err := os.MkdirAll(dir, 0o755); err == nil {
			sweepCgroup(dir)
			return dir
		}
	}
	return ""
}

// isCgroup tells a hierarchy from the plain directory that hierarchies are mounted in.
func isCgroup(dir string, magic int64) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && int64(fs.Type) == magic //nolint:unconvert // 32 bits on some architectures
}

// sweepCgroup kills and removes what is in the group's children.
func sweepCgroup(dir string) {
	children, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, child := range children {
		if child.IsDir() {
			emptyCgroup(filepath.Join(dir, child.Name()))
		}
	}
}

// emptyCgroup kills every process in the group until the kernel lets it be removed.
func emptyCgroup(dir string) {
	for range 100 {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		for field := range strings.FieldsSeq(string(procs)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 && pid != os.Getpid() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if err := os.Remove(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	slog.Warn("control group cannot be removed", "group", dir)
}

// prepare makes the groups of a function and sets its limits. The string says what is not enforced.
func (c *cgroups) prepare(id string, l limits) (string, error) {
	var lacking []string
	if l.memory > 0 && c.memory == "" {
		lacking = append(lacking, "the memory limit holds for each process's data, not for the function as a whole")
	}
	if l.cpu > 0 && c.cpu == "" {
		lacking = append(lacking, "the cpu limit is not enforced")
	}
	for _, dir := range c.groupDirs(l) {
		group := filepath.Join(dir, id)
		if err := os.MkdirAll(group, 0o755); err != nil {
			return "", fmt.Errorf("make control group: %w", err)
		}
		for file, value := range c.settings(dir, l) {
			if err := c.write(filepath.Join(group, file), value); err != nil {
				return "", fmt.Errorf("set control group: %w", err)
			}
		}
	}
	return strings.Join(lacking, "; "), nil
}

// start starts the command as a member of the function's groups from its first instruction on: one
// that entered them later could have children by then, which would be outside.
func (c *cgroups) start(cmd *exec.Cmd, id string, l limits) (err error) {
	if c.v2 != "" {
		group, err := os.Open(filepath.Join(c.v2, id))
		if err != nil {
			return fmt.Errorf("enter control group: %w", err)
		}
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
		return cmd.Start()
	}
	// Version 1 places threads: this one goes in, has a child, which is born there, and comes back.
	thread := []byte(strconv.Itoa(unix.Gettid()))
	for _, dir := range c.groupDirs(l) {
		defer func() {
			if back := os.WriteFile(filepath.Join(filepath.Dir(dir), "tasks"), thread, 0o644); back != nil {
				err = errors.Join(err, fmt.Errorf("leave control group: %w", back))
			}
		}()
		if err := os.WriteFile(filepath.Join(dir, id, "tasks"), thread, 0o644); err != nil {
			return fmt.Errorf("enter control group: %w", err)
		}
	}
	return cmd.Start()
}

// fallback wraps the program where there is no group for its memory: the shell lowers its own limit
// and becomes the program. RLIMIT_DATA rather than RLIMIT_AS, because runtimes reserve far more
// addresses than they use.
func (c *cgroups) fallback(program string, l limits) *exec.Cmd {
	if l.memory == 0 || c.memory != "" {
		return exec.Command(program)
	}
	return exec.Command("/bin/sh", "-c", `ulimit -d "$1" && exec "$0"`, program, strconv.FormatInt(l.memory>>10, 10))
}

// groupDirs are the hierarchies where a function with these limits has a group. Every function has
// one for memory, limited or not: it is how nothing of it is left over. It has one for cpu only when
// that is limited: a group with all of a function's processes in it weighs no more than one process
// outside, which would starve the function beside a busy provider.
func (c *cgroups) groupDirs(l limits) []string {
	var out []string
	for _, dir := range c.dirs() {
		if dir == c.memory || dir == c.v2 || l.cpu > 0 {
			out = append(out, dir)
		}
	}
	return out
}

func (c *cgroups) dirs() []string {
	if c.v2 != "" {
		return []string{c.v2}
	}
	var out []string
	if c.memory != "" {
		out = append(out, c.memory)
	}
	if c.cpu != "" && c.cpu != c.memory {
		out = append(out, c.cpu)
	}
	return out
}

const cpuPeriod = 100_000 // microseconds

func (c *cgroups) settings(dir string, l limits) map[string]string {
	out := map[string]string{}
	quota := strconv.FormatInt(l.cpu*cpuPeriod/1000, 10)
	period := strconv.Itoa(cpuPeriod)
	if l.memory > 0 && dir == c.memory {
		if c.v2 != "" {
			out["memory.max"] = strconv.FormatInt(l.memory, 10)
		} else {
			out["memory.limit_in_bytes"] = strconv.FormatInt(l.memory, 10)
		}
	}
	if l.cpu > 0 && dir == c.cpu {
		if c.v2 != "" {
			out["cpu.max"] = quota + " " + period
		} else {
			out["cpu.cfs_quota_us"] = quota
		}
	}
	return out
}

// ranOut reports whether the kernel killed a process of the function because its memory was at the
// limit: the counter oom_kill of memory.events in version 2, of memory.oom_control in version 1.
func (c *cgroups) ranOut(id string) bool {
	if c.memory == "" {
		return false
	}
	file := "memory.oom_control"
	if c.v2 != "" {
		file = "memory.events"
	}
	raw, err := os.ReadFile(filepath.Join(c.memory, id, file))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(raw)) {
		if count, ok := strings.CutPrefix(line, "oom_kill "); ok && strings.TrimSpace(count) != "0" {
			return true
		}
	}
	return false
}

// remove kills what is left in the function's groups and removes them.
func (c *cgroups) remove(id string) {
	for _, dir := range c.dirs() {
		emptyCgroup(filepath.Join(dir, id))
	}
}

// close removes our own group and leaves the provider where it was started.
func (c *cgroups) close() {
	for _, dir := range c.dirs() {
		os.Remove(dir)
	}
	c.comeBack()
}
