package script

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pty is the program `pty PROGRAM ARG…`: it runs the program on a terminal of 97
// columns and 31 rows, types its own stdin into that, and prints what appears.
func pty() {
	status, err := onTerminal(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "pty:", err)
		status = 125
	}
	os.Exit(status)
}

func onTerminal(args []string) (int, error) {
	if len(args) == 0 {
		return 0, errors.New("usage: pty PROGRAM [ARG ...]")
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer master.Close()
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return 0, err
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 31, Col: 97}); err != nil {
		return 0, err
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	_ = slave.Close()
	if err != nil {
		return 0, err
	}
	shown := make(chan error, 1)
	// owner: this function waits for shown below; the read ends with the last slave.
	go func() {
		_, err := io.Copy(os.Stdout, master)
		if errors.Is(err, unix.EIO) {
			err = nil
		}
		shown <- err
	}()
	// owner: nobody needs to: the process ends.
	go func() {
		time.Sleep(500 * time.Millisecond) // a program that sets up its terminal drops what was typed before
		_, _ = io.Copy(master, os.Stdin)
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil
	}
	return cmd.ProcessState.ExitCode(), errors.Join(err, <-shown)
}
