package kube

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// nodeVariable tells the test's own program that it was started as a node; see Main.
const nodeVariable = "FAAS_PREDICT_TEST_NODE"

// Main must be the first call of TestMain: Start runs the test's own program a second time, as the first process of
// the node. It returns at once in any other process.
func Main() {
	if os.Getenv(nodeVariable) == "" {
		return
	}
	if err := runNode(); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// supervisor is process 1 of the node. It has process, mount and network namespaces of its own, so that when it ends,
// for whatever reason, the kernel ends everything on the node and takes its mounts, interfaces and iptables rules.
type supervisor struct {
	logs string

	mu       sync.Mutex
	programs map[string]*program
	ended    map[int]chan struct{} // by process
	started  *sync.Cond
}

type program struct {
	argv []string
	pid  int
}

// runNode obeys the lines on standard input until its end, which comes when the test ends or is killed:
//
//	start NAME PROGRAM ARGUMENT…   run it, and again whenever it ends
//	kill NAME                      SIGKILL; it is started again
//
// Each is answered with a line, "ok" or what went wrong. Fields are separated by tabs.
func runNode() error {
	s := &supervisor{logs: os.Getenv(nodeVariable), programs: map[string]*program{}, ended: map[int]chan struct{}{}}
	s.started = sync.NewCond(&s.mu)
	os.Unsetenv(nodeVariable)
	go s.reap()
	if err := s.mounts(); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), "\t")
		var err error
		switch {
		case fields[0] == "start" && len(fields) > 2:
			p := &program{argv: fields[2:]}
			if err = s.start(fields[1], p); err == nil {
				go s.keep(fields[1], p)
			}
		case fields[0] == "kill" && len(fields) == 2:
			s.mu.Lock()
			if p := s.programs[fields[1]]; p == nil {
				err = fmt.Errorf("no program %s", fields[1])
			} else {
				err = syscall.Kill(p.pid, syscall.SIGKILL)
			}
			s.mu.Unlock()
		default:
			err = fmt.Errorf("what is %q", fields)
		}
		if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("ok")
		}
	}
	return lines.Err()
}

// mounts gives the node a /proc of its own, and hides the machine's folders that node programs write to whatever
// they are told.
func (s *supervisor) mounts() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range []string{"/run", "/var/lib/cni", "/var/lib/kubelet", "/var/log", "/opt"} {
		mine := filepath.Join(s.logs, "..", "node", dir)
		if err := os.MkdirAll(mine, 0o755); err != nil {
			return err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(mine, dir, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", dir, err)
		}
	}
	// The kubelet's mounts have to show in containers.
	return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
}

func (s *supervisor) start(name string, p *program) error {
	log, err := os.OpenFile(filepath.Join(s.logs, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.argv[0], p.argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	p.pid = cmd.Process.Pid
	s.programs[name] = p
	s.ended[p.pid] = make(chan struct{})
	s.started.Signal()
	return nil
}

// keep starts the program again whenever it ends.
func (s *supervisor) keep(name string, p *program) {
	for {
		s.mu.Lock()
		ended := s.ended[p.pid]
		s.mu.Unlock()
		<-ended
		s.mu.Lock()
		delete(s.ended, p.pid)
		s.mu.Unlock()
		time.Sleep(time.Second)
		for s.start(name, p) != nil {
			time.Sleep(time.Second)
		}
	}
}

// reap waits for every process, because those whose parent ended become children of process 1.
func (s *supervisor) reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, 0, nil)
		s.mu.Lock()
		if ended := s.ended[pid]; err == nil && ended != nil {
			close(ended)
		}
		if err == syscall.ECHILD {
			s.started.Wait()
		}
		s.mu.Unlock()
	}
}
