// SPDX-License-Identifier: Apache-2.0

package leak

import "golang.org/x/sys/unix"

// fsKind is what a search does about a file system.
type fsKind struct {
	skip   string // why it is not entered, or empty
	memory bool   // its files may change without a change of ctime
}

// Magic numbers that x/sys lacks, from linux/magic.h and the file systems' sources.
const (
	fuseMagic   = 0x65735546
	fuseCtl     = 0x65735543
	configfs    = 0x62656570
	cephMagic   = 0x00c36400
	smb2Magic   = 0xfe534d42
	cifsMagic   = 0xff534d42
	mqueueMagic = 0x19800202
	rpcPipefs   = 0x67596969
	nfsdMagic   = 0x6e667364
)

// fileSystem judges a file system by its magic number, statfs(2). devtmpfs has
// the number of tmpfs and is entered: a file in /dev is a file.
func fileSystem(magic uint32) fsKind {
	const kernel, remote = "a view of the kernel, not files", "a network or FUSE file system"
	switch magic {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		return fsKind{memory: true}
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.CGROUP_SUPER_MAGIC,
		unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC,
		unix.BPF_FS_MAGIC, unix.BINFMTFS_MAGIC, unix.EFIVARFS_MAGIC, unix.SELINUX_MAGIC, unix.NSFS_MAGIC,
		unix.AUTOFS_SUPER_MAGIC, unix.SMACK_MAGIC, fuseCtl, configfs, mqueueMagic, rpcPipefs, nfsdMagic:
		return fsKind{skip: kernel}
	case unix.NFS_SUPER_MAGIC, unix.V9FS_MAGIC, unix.AFS_SUPER_MAGIC, unix.SMB_SUPER_MAGIC,
		unix.CODA_SUPER_MAGIC, fuseMagic, cephMagic, smb2Magic, cifsMagic:
		return fsKind{skip: remote}
	}
	return fsKind{}
}
