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
	memory string // directory of our group in the hierarchy that has the controller, "" without
	cpu    string
	v2     bool
}

const cgroupRoot = "/sys/fs/cgroup"

// openCgroups makes our group and removes groups that a killed provider left in it.
func openCgroups(name string) *cgroups {
	c := &cgroups{name: "faas-predict-" + name}
	own := ownCgroups()
	if path, ok := own[""]; ok && c.openV2(filepath.Join(cgroupRoot, path)) {
		return c
	}
	c.memory = c.openV1("memory", own["memory"])
	c.cpu = c.openV1("cpu", own["cpu"])
	if c.memory == "" || c.cpu == "" {
		slog.Warn("control groups cannot be used fully: limits of functions are not enforced as a whole", "memory", c.memory != "", "cpu", c.cpu != "")
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

// openV2 needs the controllers handed down to our group's children. The kernel allows that only for
// a group without processes of its own, so it works where an administrator or systemd delegated a
// group (Delegate=yes) whose controllers are on already.
func (c *cgroups) openV2(parent string) bool {
	if !isCgroup(parent, unix.CGROUP2_SUPER_MAGIC) {
		return false
	}
	handed, err := os.ReadFile(filepath.Join(parent, "cgroup.subtree_control"))
	if err != nil || !strings.Contains(string(handed), "memory") || !strings.Contains(string(handed), "cpu") {
		if err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+memory +cpu"), 0o644); err != nil {
			return false
		}
	}
	dir := filepath.Join(parent, c.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return false
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory +cpu"), 0o644); err != nil {
		os.Remove(dir)
		return false
	}
	c.v2, c.memory, c.cpu = true, dir, dir
	sweepCgroup(dir)
	return true
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
			if err := os.WriteFile(filepath.Join(group, file), []byte(value), 0o644); err != nil {
				return "", fmt.Errorf("set control group: %w", err)
			}
		}
	}
	return strings.Join(lacking, "; "), nil
}

// start starts the command as a member of the function's groups from its first instruction on: one
// that entered them later could have children by then, which would be outside.
func (c *cgroups) start(cmd *exec.Cmd, id string, l limits) (err error) {
	if c.v2 {
		group, err := os.Open(filepath.Join(c.memory, id))
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
		if dir == c.memory || l.cpu > 0 {
			out = append(out, dir)
		}
	}
	return out
}

func (c *cgroups) dirs() []string {
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
		if c.v2 {
			out["memory.max"] = strconv.FormatInt(l.memory, 10)
		} else {
			out["memory.limit_in_bytes"] = strconv.FormatInt(l.memory, 10)
		}
	}
	if l.cpu > 0 && dir == c.cpu {
		if c.v2 {
			out["cpu.max"] = quota + " " + period
		} else {
			out["cpu.cfs_quota_us"] = quota
		}
	}
	return out
}

// remove kills what is left in the function's groups and removes them.
func (c *cgroups) remove(id string) {
	for _, dir := range c.dirs() {
		emptyCgroup(filepath.Join(dir, id))
	}
}

// close removes our own group.
func (c *cgroups) close() {
	for _, dir := range c.dirs() {
		os.Remove(dir)
	}
}
