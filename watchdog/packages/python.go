// Package packages is about the packages that a bundle asks for: it installs those of Python into an environment, and
// says which of R's are not there.
//
// Where an environment is kept, for how long and who shares it is its caller's, and may not enter here.
package packages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// RequirementsFile lists a bundle's Python packages, as pip reads it.
const RequirementsFile = "requirements.txt"

// Requirements is the list of the bundle in dir, nil when it asks for no packages.
func Requirements(dir string) ([]byte, error) {
	list, err := os.ReadFile(filepath.Join(dir, RequirementsFile))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !asksForPackages(list) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", RequirementsFile, err)
	}
	return list, nil
}

func asksForPackages(requirements []byte) bool {
	for line := range bytes.Lines(requirements) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return true
		}
	}
	return false
}

// sources are the beginnings of variables that may reach an installation besides the basic ones: they say where
// packages come from.
var sources = []string{"PIP_", "UV_", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"}

// Sources are those of the variables, NAME=VALUE, that say where packages come from.
func Sources(variables []string) (out []string) {
	for _, variable := range variables {
		if begins(variable, sources) {
			out = append(out, variable)
		}
	}
	return out
}

// files are the beginnings of those that name a file of the machine that they are set on.
var files = []string{"SSL_CERT_", "REQUESTS_CA_BUNDLE", "PIP_CERT", "PIP_CLIENT_CERT", "PIP_CONFIG_FILE", "UV_CONFIG_FILE"}

// PortableSources are Sources that mean the same on another machine, by name.
func PortableSources(variables []string) map[string]string {
	out := map[string]string{}
	for _, variable := range Sources(variables) {
		if name, value, _ := strings.Cut(variable, "="); !begins(name, files) {
			out[name] = value
		}
	}
	return out
}

func begins(variable string, with []string) bool {
	return slices.ContainsFunc(with, func(beginning string) bool { return strings.HasPrefix(variable, beginning) })
}

// Installer installs Python packages.
type Installer struct {
	Python     string              // the interpreter that environments are made from
	UV         string              // the program uv, which is many times faster than pip; "" for what Python brings along
	Variables  []string            // the environment of what installs, but HOME and TMPDIR
	Credential *syscall.Credential // who installs, since packages bring code of their own; nil is this process's user
	Progress   func(line string)
}

// Install makes the empty folder env an environment that has what the file list names. Its scripts hold its path, so it
// is made where it stays. What is written besides goes to scratch. On an error, which ends with what the installation
// said last, env is of no use.
func (i Installer) Install(ctx context.Context, env, list, scratch string) error {
	for _, command := range i.commands(env, list) {
		if err := i.run(ctx, scratch, command); err != nil {
			return err
		}
	}
	return nil
}

// Interpreter is the one of an environment.
func Interpreter(env string) string { return filepath.Join(env, "bin", "python3") }

func (i Installer) commands(env, list string) [][]string {
	if i.UV != "" {
		return [][]string{
			{i.UV, "venv", "--quiet", "--allow-existing", "--python", i.Python, env},
			{i.UV, "pip", "install", "--python", Interpreter(env), "--requirement", list},
		}
	}
	return [][]string{
		{i.Python, "-m", "venv", env},
		{Interpreter(env), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--requirement", list},
	}
}

// saidLast is how many lines of a failed installation its error has.
const saidLast = 20

func (i Installer) run(ctx context.Context, scratch string, command []string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Dir = scratch
	cmd.Env = append(append([]string{}, i.Variables...), "HOME="+scratch, "TMPDIR="+scratch)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: i.Credential}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	output := &tail{keep: saidLast, progress: i.Progress}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%s cannot be installed: %s: %w\n%s", RequirementsFile, filepath.Base(command[0]), err, output.text())
	}
	return nil
}
