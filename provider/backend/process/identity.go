package process

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/faas-predict/faas-predict/provider/config"
)

// identity is who a child runs as. The zero value is the provider's own user.
type identity struct{ uid int }

func (id identity) credential() *syscall.Credential {
	if id.uid == 0 {
		return nil
	}
	return &syscall.Credential{Uid: uint32(id.uid), Gid: uint32(id.uid), Groups: []uint32{}}
}

// own gives the files to the identity.
func (id identity) own(paths ...string) error {
	if id.uid == 0 {
		return nil
	}
	for _, p := range paths {
		if err := os.Lchown(p, id.uid, id.uid); err != nil {
			return err
		}
	}
	return nil
}

// Permission bits of others in a file's mode.
const (
	othersRead    = 0o004
	othersExecute = 0o001
)

// canRun says why the identity cannot execute the program, or nil. It looks at what links lead to
// and at every directory on the way.
func (id identity) canRun(program string) error {
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		return err
	}
	if id.uid == 0 {
		return nil
	}
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	if !id.may(info, othersRead|othersExecute) {
		return fmt.Errorf("%s may not be executed by user %d", real, id.uid)
	}
	return id.canReach(filepath.Dir(real))
}

// canReach says which directory on the way to dir, dir included, the identity cannot pass, or nil.
func (id identity) canReach(dir string) error {
	if id.uid == 0 {
		return nil
	}
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if !id.may(info, othersExecute) {
			return fmt.Errorf("%s (mode %04o) is closed to user %d", dir, info.Mode().Perm(), id.uid)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func (id identity) may(info os.FileInfo, bits os.FileMode) bool {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		switch id.uid {
		case int(st.Uid):
			bits <<= 6
		case int(st.Gid):
			bits <<= 3
		}
	}
	return info.Mode().Perm()&bits == bits
}

// builder is the identity that builds Python environments.
func builder(r config.UIDRange) identity {
	if os.Geteuid() != 0 {
		return identity{}
	}
	return identity{r.First}
}

// copyProgram puts a copy of the program where every identity can run it.
func copyProgram(program, copied string) error {
	in, err := os.Open(program)
	if err != nil {
		return err
	}
	defer in.Close()
	part := copied + ".part"
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Chmod(part, 0o755)
	}
	if err == nil {
		err = os.Rename(part, copied)
	}
	return err
}
