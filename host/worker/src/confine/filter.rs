//! The system calls of each role.
//!
//! Unlisted calls answer EPERM instead of killing: libraries probe (rayon reads its cgroup), and one probe must not
//! take interleaved steps along. `clone3` answers ENOSYS, so that thread starts fall back to `clone`, whose flags a
//! filter can read: only threads, never processes.

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// What the process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Execute,
    Compile,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`, 96 bytes: see linux/fs.h.
const PAGEMAP_SCAN: u64 = 0xC060_6610;

/// Memory, threads, time, signals, and the descriptors that are open already.
const COMMON: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_clone3,
    libc::SYS_memfd_create,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    // Landlock decides which paths open; reopening an own descriptor needs these too.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_readlinkat,
];

/// What steps with folders need, and the event loop.
const EXECUTE: &[i64] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_getdents64,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fadvise64,
    libc::SYS_utimensat,
];

/// Calls that the newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[i64] =
    &[libc::SYS_epoll_wait, libc::SYS_poll, libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_readlink];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[i64] = &[];

/// The programs to install, in order. The kernel takes the strictest answer of all of them.
pub(super) fn programs(role: Role) -> Result<Vec<BpfProgram>, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let no_clone3 = SeccompFilter::new(
        [(libc::SYS_clone3, vec![])].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        arch,
    )?;
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        COMMON.iter().chain(LEGACY).map(|&call| (call, vec![])).collect();
    if role == Role::Execute {
        rules.extend(EXECUTE.iter().map(|&call| (call, vec![])));
        rules.insert(libc::SYS_ioctl, vec![equal(1, PAGEMAP_SCAN)?]);
    }
    let thread = u64::from(libc::CLONE_THREAD.cast_unsigned());
    rules.insert(libc::SYS_clone, vec![masked(0, thread, thread)?]);
    // abort() sends itself a signal; nobody else may be sent one.
    rules.insert(libc::SYS_tgkill, vec![equal(0, u64::from(std::process::id()))?]);
    // Names of threads; reading of limits by the thread library; seals and flags of descriptors.
    rules.insert(libc::SYS_prctl, vec![equal(0, libc::PR_SET_NAME.cast_unsigned().into())?, equal(0, PR_SET_VMA)?]);
    rules.insert(libc::SYS_prlimit64, vec![own_limits_read()?]);
    let fcntl = [
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_SETFL,
        libc::F_DUPFD_CLOEXEC,
        libc::F_ADD_SEALS,
        libc::F_GET_SEALS,
    ];
    rules.insert(
        libc::SYS_fcntl,
        fcntl.iter().map(|&command| equal(1, command.cast_unsigned().into())).collect::<Result<_, _>>()?,
    );
    let listed =
        SeccompFilter::new(rules, SeccompAction::Errno(libc::EPERM.cast_unsigned()), SeccompAction::Allow, arch)?;
    // The list goes last: it would refuse the installing of another.
    Ok(vec![no_clone3.try_into()?, listed.try_into()?])
}

/// Names anonymous memory for /proc/PID/maps; glibc's malloc asks for it.
const PR_SET_VMA: u64 = 0x5356_4d41;

fn equal(argument: u8, value: u64) -> Result<SeccompRule, BackendError> {
    condition(argument, SeccompCmpOp::Eq, value)
}

/// No process but this one, and no new value.
fn own_limits_read() -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)?,
        SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?,
    ])
}

fn masked(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
    condition(argument, SeccompCmpOp::MaskedEq(mask), value)
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
}
