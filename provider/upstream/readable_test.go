package upstream

import "golang.org/x/sys/unix"

// waitReadable blocks until the descriptor has something to read, without reading it.
func waitReadable(fd uintptr) bool {
	_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	return err == nil
}
