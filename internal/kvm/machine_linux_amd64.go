// SPDX-License-Identifier: Apache-2.0

package kvm

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The requests of linux/kvm.h that the test uses.
const (
	getAPIVersion    = 0xae00
	createVM         = 0xae01
	getVCPUMmapSize  = 0xae04
	getSupportedCPU  = 0xc008ae05
	createVCPU       = 0xae41
	setUserMemory    = 0x4020ae46
	setTSSAddress    = 0xae47
	setIdentityMap   = 0x4008ae48
	runVCPU          = 0xae80
	setRegisters     = 0x4090ae82
	getSpecial       = 0x8138ae83
	setSpecial       = 0x4138ae84
	setCPUID2        = 0x4008ae90
	apiVersion       = 12
	exitIO           = 2
	exitHalt         = 5
	exitInterrupted  = 10
	exitInternal     = 17
	cpuidEntries     = 256
	cpuidEntryBytes  = 40
	memoryBytes      = 1 << 16
	immediateExitOff = 1 // struct kvm_run: offset of immediate_exit
)

// machine is one VM with one virtual CPU and 64 KiB of memory.
type machine struct {
	vm, vcpu *os.File
	memory   []byte
	run      []byte // struct kvm_run, shared with the kernel
}

// trace is what one run of the virtual CPU did.
type trace struct {
	out    []uint32 // the values written to the port, in order
	halted bool
	late   bool
	end    string // the exit that ended it, for people
	err    error
}

// ioctl passes a pointer, which stays one until the call itself: Go may move
// what it points to before that.
func ioctl(fd int, request uintptr, arg unsafe.Pointer) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if errno == 0 {
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, errno
		}
	}
}

func control(f *os.File, what string, request uintptr, arg unsafe.Pointer) error {
	if _, err := ioctl(int(f.Fd()), request, arg); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// newMachine always returns a machine that can be closed.
func newMachine(kvm int) (*machine, error) {
	m := &machine{}
	fd, err := ioctl(kvm, createVM, nil)
	if err != nil {
		return m, fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	m.vm = os.NewFile(uintptr(fd), "kvm-vm")
	if err := m.addMemory(); err != nil {
		return m, err
	}
	if fd, err = ioctl(int(m.vm.Fd()), createVCPU, nil); err != nil {
		return m, fmt.Errorf("KVM_CREATE_VCPU: %w", err)
	}
	m.vcpu = os.NewFile(uintptr(fd), "kvm-vcpu")
	size, err := ioctl(kvm, getVCPUMmapSize, nil)
	if err != nil {
		return m, fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %w", err)
	}
	if m.run, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return m, fmt.Errorf("mapping the virtual CPU: %w", err)
	}
	return m, m.setUp(kvm)
}

func (m *machine) addMemory() error {
	// Processors without "unrestricted guest" want four pages of their own.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, m.vm.Fd(), setTSSAddress, 0xfffbd000); errno != 0 {
		return fmt.Errorf("KVM_SET_TSS_ADDR: %w", errno)
	}
	identity := uint64(0xfffbc000)
	if err := control(m.vm, "KVM_SET_IDENTITY_MAP_ADDR", setIdentityMap, unsafe.Pointer(&identity)); err != nil {
		return err
	}
	memory, err := unix.Mmap(-1, 0, memoryBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("memory for the VM: %w", err)
	}
	m.memory = memory
	fill(memory)
	region := struct {
		slot, flags       uint32
		guest, size, host uint64
	}{size: memoryBytes, host: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	return control(m.vm, "KVM_SET_USER_MEMORY_REGION", setUserMemory, unsafe.Pointer(&region))
}

// setUp gives the virtual CPU the host's features and puts it into long mode.
func (m *machine) setUp(kvm int) error {
	cpuid := make([]byte, 8+cpuidEntries*cpuidEntryBytes)
	binary.LittleEndian.PutUint32(cpuid, cpuidEntries)
	if _, err := ioctl(kvm, getSupportedCPU, unsafe.Pointer(&cpuid[0])); err != nil {
		return fmt.Errorf("KVM_GET_SUPPORTED_CPUID: %w", err)
	}
	if err := control(m.vcpu, "KVM_SET_CPUID2", setCPUID2, unsafe.Pointer(&cpuid[0])); err != nil {
		return err
	}
	var s special
	if err := control(m.vcpu, "KVM_GET_SREGS", getSpecial, unsafe.Pointer(&s)); err != nil {
		return err
	}
	s.longMode()
	if err := control(m.vcpu, "KVM_SET_SREGS", setSpecial, unsafe.Pointer(&s)); err != nil {
		return err
	}
	r := registers{rip: codeAt, rsp: codeAt, rflags: 2}
	return control(m.vcpu, "KVM_SET_REGS", setRegisters, unsafe.Pointer(&r))
}

// trace runs the virtual CPU until it halts, faults, or its time is up.
func (m *machine) trace() trace {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	late, stop := m.guard(unix.Getpid(), unix.Gettid())
	defer stop()
	var t trace
	for range 8 {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, m.vcpu.Fd(), runVCPU, 0)
		if late.Load() {
			t.late = true
			return t
		}
		if errno == unix.EINTR || errno == unix.EAGAIN {
			continue
		}
		if errno != 0 {
			t.err = fmt.Errorf("KVM_RUN: %w", errno)
			return t
		}
		if !m.step(&t) {
			return t
		}
	}
	t.end = "too many exits"
	return t
}

// step reads one exit and says whether to go on.
func (m *machine) step(t *trace) bool {
	switch reason := binary.LittleEndian.Uint32(m.run[8:]); reason {
	case exitIO:
		// direction, size, port, count, then the offset of the data
		io := m.run[32:]
		if io[0] != 1 || io[1] != 4 || binary.LittleEndian.Uint16(io[2:]) != port {
			t.end = "an unexpected port"
			return false
		}
		at := binary.LittleEndian.Uint64(io[8:])
		if at > uint64(len(m.run)-4) {
			t.end = "an exit that makes no sense"
			return false
		}
		t.out = append(t.out, binary.LittleEndian.Uint32(m.run[at:]))
		return true
	case exitHalt:
		t.halted, t.end = true, "halted early"
	case exitInterrupted:
		return true
	case exitInternal:
		t.end = fmt.Sprintf("KVM_EXIT_INTERNAL_ERROR %d", binary.LittleEndian.Uint32(m.run[32:]))
	default:
		t.end = fmt.Sprintf("KVM exit %d", reason)
	}
	return false
}

// guard makes KVM_RUN on thread tid return when the limit is over. The Go
// runtime uses SIGURG for itself and so takes no harm from one more.
func (m *machine) guard(pid, tid int) (late *atomic.Bool, stop func()) {
	late = new(atomic.Bool)
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		wait := time.NewTimer(limit)
		defer wait.Stop()
		for {
			select {
			case <-quit:
				return
			case <-wait.C:
			}
			late.Store(true)
			m.run[immediateExitOff] = 1
			_ = unix.Tgkill(pid, tid, unix.SIGURG)
			wait.Reset(10 * time.Millisecond)
		}
	}()
	return late, func() { close(quit); <-gone }
}

func (m *machine) close() {
	if m.run != nil {
		_ = unix.Munmap(m.run)
	}
	for _, f := range []*os.File{m.vcpu, m.vm} {
		if f != nil {
			_ = f.Close()
		}
	}
	if m.memory != nil {
		_ = unix.Munmap(m.memory) // after the VM that uses it
	}
}
