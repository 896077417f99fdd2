//! Native code in the guest's place: what a guest could call once it is out of WebAssembly.
//!
//! A signal handler of a real worker, which runs on the one thread that runs guests, while a guest spins there, behind
//! the walls that the worker put up. It allocates nothing: the thread may be anywhere. For each call it writes `> NAME`,
//! makes the call, and writes `< NUMBER`: 0, or the error; then `= NUMBER LINK` for each open descriptor, and `end`.
//! A call that ends or replaces the process leaves no second line: the test begins again after it.

use std::{
    ffi::{CStr, CString},
    fmt::Write as _,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::null,
    sync::OnceLock,
};

use libc::{c_int, c_long, c_void};

/// `argv[1]` of this program when a probe executed it.
pub(crate) const EXECUTED: &str = "__executed";
const DESCRIPTORS: c_int = 1024;
/// From linux/keyctl.h, linux/landlock.h and linux/userfaultfd.h.
const KEY_SPEC_PROCESS_KEYRING: c_long = -2;
const UFFD_USER_MODE_ONLY: c_long = 1;

struct World {
    first: usize,
    segment: CString,
    socket: CString,
    outside: CString,
    granted: CString,
    link: CString,
    parent: c_long,
    parent_memory: CString,
    parent_environment: CString,
}

static WORLD: OnceLock<World> = OnceLock::new();

/// Calls what stands in [`CALLS`] from the place `first` on, when SIGUSR1 arrives.
pub(crate) fn arm(first: usize, root: &Path) {
    let path = |name: &str| CString::new(root.join(name).as_os_str().as_bytes()).expect("a path");
    let parent = std::os::unix::process::parent_id();
    let of_parent = |name: &str| CString::new(format!("/proc/{parent}/{name}")).expect("a path");
    let world = World {
        first,
        segment: path("queue/segment-000001.log"),
        socket: path("queue/tm.sock"),
        outside: path("queue/new"),
        granted: path("granted/file"),
        link: path("granted/link"),
        parent: parent.into(),
        parent_memory: of_parent("mem"),
        parent_environment: of_parent("environ"),
    };
    assert!(WORLD.set(world).is_ok(), "armed once");
    // SAFETY: all zeroes is a valid sigaction; the handler has the plain signature and touches no lock or heap.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = probe as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
}

extern "C" fn probe(_: c_int) {
    let Some(world) = WORLD.get() else { return };
    for (name, call) in CALLS.iter().skip(world.first) {
        say(format_args!("> {name}\n"));
        say(format_args!("< {}\n", -call(world)));
    }
    let mut link = [0_u8; 256];
    for descriptor in 0..DESCRIPTORS {
        let mut path = Line::default();
        let _ = write!(path, "/proc/self/fd/{descriptor}\0");
        let length = raw(libc::SYS_readlinkat, &[libc::AT_FDCWD as _, path.pointer(), link.as_mut_ptr() as _, 256]);
        if let Ok(length) = usize::try_from(length) {
            say(format_args!("= {descriptor} {}\n", str::from_utf8(&link[..length]).unwrap_or("?")));
        }
    }
    say(format_args!("end\n"));
}

/// A text on the stack; what does not fit is cut.
struct Line {
    bytes: [u8; 320],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 320], length: 0 }
    }
}

impl Line {
    fn pointer(&self) -> c_long {
        self.bytes.as_ptr() as c_long
    }
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = self.bytes.len() - self.length;
        let part = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.length..][..part.len()].copy_from_slice(part);
        self.length += part.len();
        Ok(())
    }
}

fn say(text: std::fmt::Arguments<'_>) {
    let mut line = Line::default();
    let _ = line.write_fmt(text);
    raw(libc::SYS_write, &[1, line.pointer(), line.length as _]);
}

/// The call's answer, or its error below zero.
fn raw(number: c_long, arguments: &[c_long]) -> c_long {
    let at = |place: usize| arguments.get(place).copied().unwrap_or(0);
    // SAFETY: the pointers among the arguments lead to what outlives the call; everything else is a number.
    let answer = unsafe { libc::syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) };
    // SAFETY: the address of this thread's errno is always valid.
    if answer == -1 { -c_long::from(unsafe { *libc::__errno_location() }) } else { answer }
}

/// Zero, or the error: what a descriptor or a number was, does not matter.
fn did(answer: c_long) -> c_long {
    answer.min(0)
}

fn pointer<T>(to: &T) -> c_long {
    std::ptr::from_ref(to) as c_long
}

/// As [`did`], of a call that gives a descriptor: the table names those of the worker alone.
fn opened(answer: c_long) -> c_long {
    if answer >= 0 {
        raw(libc::SYS_close, &[answer]);
    }
    did(answer)
}

fn open(path: &CStr, flags: c_int) -> c_long {
    opened(raw(libc::SYS_openat, &[libc::AT_FDCWD.into(), path.as_ptr() as _, (flags | libc::O_CLOEXEC).into(), 0o600]))
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_long {
    raw(libc::SYS_socket, &[family.into(), (kind | libc::SOCK_CLOEXEC).into(), protocol.into()])
}

/// Every family and type there is: the first that is given, else the last error.
fn any_socket(_: &World) -> c_long {
    let mut last = 0;
    for family in 0..64 {
        for kind in 1..=6 {
            last = socket(family, kind, 0);
            if last >= 0 {
                return 0;
            }
        }
    }
    last
}

fn connect_tcp(_: &World) -> c_long {
    let made = socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    let to = [2_u8, 0, 0, 9, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    if made < 0 { made } else { did(raw(libc::SYS_connect, &[made, pointer(&to), 16])) }
}

fn connect_unix(world: &World) -> c_long {
    let made = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
    if made < 0 {
        return made;
    }
    let mut to = [0_u8; 110];
    to[0] = 1;
    let path = world.socket.as_bytes();
    to[2..2 + path.len()].copy_from_slice(path);
    did(raw(libc::SYS_connect, &[made, pointer(&to), 110]))
}

/// In the new process nothing but its end.
fn forked(answer: c_long) -> c_long {
    if answer == 0 {
        raw(libc::SYS_exit_group, &[0]);
    }
    did(answer)
}

fn clone3(_: &World) -> c_long {
    // struct clone_args: exit_signal is the fifth of its eleven fields.
    let mut arguments = [0_u64; 11];
    arguments[4] = libc::SIGCHLD as u64;
    forked(raw(libc::SYS_clone3, &[pointer(&arguments), 88]))
}

#[cfg(target_arch = "x86_64")]
fn vfork(_: &World) -> c_long {
    let answer: c_long;
    // SAFETY: the new process ends at once and writes nothing: the memory is this one's.
    unsafe {
        std::arch::asm!(
            "syscall", "test rax, rax", "jnz 2f", "xor edi, edi", "mov eax, 60", "syscall", "2:",
            inout("rax") libc::SYS_vfork => answer, out("rcx") _, out("r11") _, out("rdi") _,
        );
    }
    did(answer)
}

fn execve(_: &World) -> c_long {
    let arguments = [c"probe".as_ptr(), c"__executed".as_ptr(), null()];
    raw(libc::SYS_execve, &[c"/proc/self/exe".as_ptr() as _, pointer(&arguments), 0])
}

fn execveat(_: &World) -> c_long {
    let memory = raw(libc::SYS_memfd_create, &[c"program".as_ptr() as _, 0]);
    let program = program();
    raw(libc::SYS_write, &[memory, pointer(&program), program.len() as _]);
    let arguments = [c"probe".as_ptr(), null()];
    let answer =
        raw(libc::SYS_execveat, &[memory, c"".as_ptr() as _, pointer(&arguments), 0, libc::AT_EMPTY_PATH.into()]);
    raw(libc::SYS_close, &[memory]);
    answer
}

/// A whole program for x86-64 that writes `< 0` and ends.
fn program() -> [u8; 160] {
    let mut bytes = [0_u8; 160];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0, 0x78, 0, 0x40, 0, 0, 0, 0, 0, 64]);
    put(52, &[64, 0, 56, 0, 1]);
    put(64, &[1, 0, 0, 0, 5]);
    put(82, &[0x40]);
    put(90, &[0x40]);
    put(96, &[160]);
    put(104, &[160]);
    put(113, &[0x10]);
    put(120, &[0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0, 0x48, 0x8d, 0x35, 16, 0, 0, 0, 0xba, 4, 0, 0, 0, 0x0f, 5]);
    put(144, &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 5]);
    put(153, b"< 0\n");
    bytes
}

fn process_vm_readv(world: &World) -> c_long {
    let mut taken = [0_u8; 8];
    let ours = libc::iovec { iov_base: taken.as_mut_ptr().cast::<c_void>(), iov_len: 8 };
    let theirs = libc::iovec { iov_base: 0x1000 as *mut c_void, iov_len: 8 };
    did(raw(libc::SYS_process_vm_readv, &[world.parent, pointer(&ours), 1, pointer(&theirs), 1, 0]))
}

fn perf_event_open(_: &World) -> c_long {
    // perf_event_attr: PERF_TYPE_SOFTWARE, its size, PERF_COUNT_SW_CPU_CLOCK, without the kernel's part.
    let mut attributes = [0_u64; 16];
    attributes[0] = 1 | (128 << 32);
    attributes[5] = 1 << 5 | 1 << 6;
    did(raw(libc::SYS_perf_event_open, &[pointer(&attributes), 0, -1, -1, 0]))
}

fn io_uring(_: &World) -> c_long {
    let parameters = [0_u64; 15];
    did(raw(libc::SYS_io_uring_setup, &[1, pointer(&parameters)]))
}

fn bpf(_: &World) -> c_long {
    // BPF_MAP_CREATE of an array with one entry of 4 bytes.
    let mut attributes = [0_u32; 18];
    attributes[..4].copy_from_slice(&[2, 4, 4, 1]);
    did(raw(libc::SYS_bpf, &[0, pointer(&attributes), 72]))
}

fn raise_limit(_: &World) -> c_long {
    let most = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    did(raw(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE.into(), pointer(&most), 0]))
}

fn pair(number: c_long, arguments: &[c_long]) -> c_long {
    let ends = [0_i32; 2];
    let at = arguments.iter().position(|&argument| argument == c_long::MAX).unwrap_or(0);
    let mut all = [0; 4];
    all[..arguments.len()].copy_from_slice(arguments);
    all[at] = pointer(&ends);
    did(raw(number, &all))
}

/// Stands for the address of a pair in the arguments of [`pair`].
const HERE: c_long = c_long::MAX;

type Call = fn(&World) -> c_long;

/// The rows of the table, in its order.
const CALLS: &[(&str, Call)] = &[
    // Files.
    ("open /etc/passwd", |_| open(c"/etc/passwd", libc::O_RDONLY)),
    ("open /proc/self/maps", |_| open(c"/proc/self/maps", libc::O_RDONLY)),
    ("open /dev/null", |_| open(c"/dev/null", libc::O_RDWR)),
    ("open / as a folder", |_| open(c"/", libc::O_RDONLY | libc::O_DIRECTORY)),
    ("open / as a path only", |_| open(c"/", libc::O_PATH)),
    ("stat /etc/passwd", |_| {
        let room = [0_u64; 32];
        raw(libc::SYS_statx, &[libc::AT_FDCWD.into(), c"/etc/passwd".as_ptr() as _, 0, 0x7ff, pointer(&room)])
    }),
    ("readlink /proc/self/exe", |_| {
        let room = [0_u8; 256];
        did(raw(libc::SYS_readlinkat, &[libc::AT_FDCWD.into(), c"/proc/self/exe".as_ptr() as _, pointer(&room), 256]))
    }),
    ("open a log segment to read", |world| open(&world.segment, libc::O_RDONLY)),
    ("open a log segment to append", |world| open(&world.segment, libc::O_WRONLY | libc::O_APPEND)),
    ("create a file beside the log", |world| open(&world.outside, libc::O_WRONLY | libc::O_CREAT)),
    ("open a file of the granted folder", |world| open(&world.granted, libc::O_RDWR)),
    ("link the log into the granted folder", |world| {
        let (from, to) = (world.segment.as_ptr() as c_long, world.link.as_ptr() as c_long);
        did(raw(libc::SYS_linkat, &[libc::AT_FDCWD.into(), from, libc::AT_FDCWD.into(), to, 0]))
    }),
    ("chmod in the granted folder", |world| {
        did(raw(libc::SYS_fchmodat, &[libc::AT_FDCWD.into(), world.granted.as_ptr() as _, 0o777]))
    }),
    ("mknod of a pipe", |world| {
        did(raw(libc::SYS_mknodat, &[libc::AT_FDCWD.into(), world.outside.as_ptr() as _, 0o010_600, 0]))
    }),
    ("chdir /", |_| did(raw(libc::SYS_chdir, &[c"/".as_ptr() as _]))),
    ("chroot /", |_| did(raw(libc::SYS_chroot, &[c"/".as_ptr() as _]))),
    ("mount a tmpfs", |_| {
        let tmpfs = c"tmpfs".as_ptr() as c_long;
        did(raw(libc::SYS_mount, &[tmpfs, c"/mnt".as_ptr() as _, tmpfs, 0, 0]))
    }),
    ("inotify_init1", |_| did(raw(libc::SYS_inotify_init1, &[0]))),
    // The parent.
    ("open the parent's memory", |world| open(&world.parent_memory, libc::O_RDWR)),
    ("open the parent's environment", |world| open(&world.parent_environment, libc::O_RDONLY)),
    ("process_vm_readv of the parent", process_vm_readv),
    ("kill the parent", |world| did(raw(libc::SYS_kill, &[world.parent, libc::SIGCONT.into()]))),
    ("kill all", |_| did(raw(libc::SYS_kill, &[-1, 0]))),
    ("tgkill of the parent", |world| did(raw(libc::SYS_tgkill, &[world.parent, world.parent, libc::SIGCONT.into()]))),
    ("tkill of the parent", |world| did(raw(libc::SYS_tkill, &[world.parent, libc::SIGCONT.into()]))),
    ("pidfd_open of the parent", |world| did(raw(libc::SYS_pidfd_open, &[world.parent, 0]))),
    ("prlimit64: read the parent's limits", |world| {
        let room = [0_u64; 2];
        did(raw(libc::SYS_prlimit64, &[world.parent, libc::RLIMIT_NOFILE.into(), 0, pointer(&room)]))
    }),
    ("sched_getaffinity of the parent", |world| {
        let room = [0_u64; 16];
        did(raw(libc::SYS_sched_getaffinity, &[world.parent, 128, pointer(&room)]))
    }),
    // Sockets.
    ("socket: AF_UNIX stream", |_| did(socket(libc::AF_UNIX, libc::SOCK_STREAM, 0))),
    ("socket: AF_UNIX datagram", |_| did(socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0))),
    ("socket: AF_INET stream", |_| did(socket(libc::AF_INET, libc::SOCK_STREAM, 0))),
    ("socket: AF_INET datagram", |_| did(socket(libc::AF_INET, libc::SOCK_DGRAM, 0))),
    ("socket: AF_INET6 datagram", |_| did(socket(libc::AF_INET6, libc::SOCK_DGRAM, 0))),
    ("socket: AF_NETLINK", |_| did(socket(libc::AF_NETLINK, libc::SOCK_RAW, 0))),
    ("socket: AF_PACKET", |_| did(socket(libc::AF_PACKET, libc::SOCK_RAW, 0))),
    ("socket: AF_VSOCK", |_| did(socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0))),
    ("socket: AF_ALG", |_| did(socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0))),
    ("socket: any of 64 families and 6 types", any_socket),
    ("socketpair", |_| pair(libc::SYS_socketpair, &[1, 1, 0, HERE])),
    ("connect to 127.0.0.1:9", connect_tcp),
    ("connect to the supervisor's socket", connect_unix),
    ("open the supervisor's socket", |world| open(&world.socket, libc::O_RDWR)),
    // Processes.
    #[cfg(target_arch = "x86_64")]
    ("fork", |_| forked(raw(libc::SYS_fork, &[]))),
    #[cfg(target_arch = "x86_64")]
    ("vfork", vfork),
    ("clone without CLONE_THREAD", |_| forked(raw(libc::SYS_clone, &[libc::SIGCHLD.into(), 0, 0, 0, 0]))),
    ("clone3 without CLONE_THREAD", clone3),
    ("execve of itself", execve),
    ("execveat of a memfd", execveat),
    ("unshare: user namespace", |_| did(raw(libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()]))),
    ("unshare: file system", |_| did(raw(libc::SYS_unshare, &[libc::CLONE_FS.into()]))),
    ("setuid", |_| did(raw(libc::SYS_setuid, &[raw(libc::SYS_getuid, &[])]))),
    ("raise or lower a limit", raise_limit),
    ("personality", |_| did(raw(libc::SYS_personality, &[0]))),
    ("prctl: dumpable", |_| did(raw(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), 1, 0, 0, 0]))),
    ("prctl: parent-death signal", |_| did(raw(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG.into(), 0, 0, 0, 0]))),
    // Kernel.
    ("io_uring_setup", io_uring),
    ("bpf", bpf),
    ("userfaultfd", |_| did(raw(libc::SYS_userfaultfd, &[UFFD_USER_MODE_ONLY]))),
    ("perf_event_open", perf_event_open),
    ("keyctl", |_| did(raw(libc::SYS_keyctl, &[0, KEY_SPEC_PROCESS_KEYRING, 1]))),
    ("memfd_secret", |_| did(raw(libc::SYS_memfd_secret, &[0]))),
    ("ioctl: push a key to the terminal", |_| did(raw(libc::SYS_ioctl, &[0, libc::TIOCSTI as _, c"x".as_ptr() as _]))),
    ("shmget", |_| did(raw(libc::SYS_shmget, &[libc::IPC_PRIVATE.into(), 4096, 0o600]))),
    ("pipe2", |_| pair(libc::SYS_pipe2, &[HERE, 0])),
    ("timer_create", |_| pair(libc::SYS_timer_create, &[1, 0, HERE])),
    // Last: who is traced stops at its next signal.
    ("ptrace: be traced", |_| did(raw(libc::SYS_ptrace, &[libc::PTRACE_TRACEME.into(), 0, 0, 0]))),
];
