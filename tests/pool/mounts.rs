//! A file system of a test's own, to be filled or broken: mounted where no other process sees it, gone with the test.

use std::{
    env,
    ffi::{CStr, CString},
    fs::{self, File},
    io::{self, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::thread::UnshareFlags;
use tempfile::TempDir;

use crate::home::Home;

/// Tells the second process of a test where its file system is.
const MOUNTED: &str = "TM_POOL_MOUNTED";
/// Set in CI: a machine on which nothing can be mounted fails the test.
const REQUIRED: &str = "TM_REQUIRE_MOUNTS";
const SKIPPED: &str = "SKIPPED";
const BALLAST: &str = "ballast";
const LOOP: &[&str] = &["-o", "loop,nosuid,nodev"];

/// What a test runs on.
pub(crate) struct Disk {
    folder: PathBuf,
    /// The block device's name, of an ext4 in a file; none: a tmpfs.
    device: Option<String>,
}

/// Runs the body of `test` (as the harness names it) on a disk of `bytes` bytes of its own.
///
/// The test starts this program again with itself alone, in a mount namespace (and a user namespace, unless it is root) with
/// a tmpfs; there its body runs. Root makes an ext4 of a file, where there are loop devices and mkfs. Where nothing can be
/// mounted the test says that it did not run.
pub(crate) fn on_a_disk_of_its_own(test: &str, bytes: u64, body: impl FnOnce(&Disk)) {
    if let Some(folder) = env::var_os(MOUNTED) {
        let folder = PathBuf::from(folder);
        let device = ext4_over(&folder, bytes).inspect_err(|why| println!("on a tmpfs: {why}")).ok();
        return body(&Disk { folder, device });
    }
    let home = TempDir::with_prefix("tm-disk-").unwrap();
    let folder = home.path().join("disk");
    fs::create_dir(&folder).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(MOUNTED, &folder);
    let mount = OwnMount::new(&folder, bytes);
    // SAFETY: between fork and exec only system calls are made; nothing allocates, locks or panics.
    unsafe {
        command.pre_exec(move || mount.make());
    }
    match command.output() {
        Ok(output) => {
            let [said, warned] =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let passed = output.status.success() && said.contains("1 passed");
            assert!(passed, "on a disk of its own:\n{said}\n{warned}");
            warned.lines().filter(|line| line.starts_with(SKIPPED)).for_each(say);
        }
        Err(why) => {
            assert!(env::var_os(REQUIRED).is_none(), "no file system can be mounted: {why}, and {REQUIRED} is set");
            did_not_run(test, &format!("no file system can be mounted: {why}"));
        }
    }
}

/// Says that a test proved nothing.
pub(crate) fn did_not_run(test: &str, why: &str) {
    say(&format!("{SKIPPED} {test}: {why}"));
}

/// Past the harness, which shows what a test prints only when it fails.
fn say(line: &str) {
    // Nothing is left to tell a caller that has closed standard error.
    let _ = writeln!(io::stderr(), "{line}");
}

/// What the second process does before it begins, all prepared before the fork.
struct OwnMount {
    folder: CString,
    size: CString,
    /// Lines that keep the user what it is in its own namespace; none for root.
    maps: Option<[(&'static CStr, String); 3]>,
}

impl OwnMount {
    fn new(folder: &Path, bytes: u64) -> Self {
        let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
        let itself = |id: u32| format!("{id} {id} 1\n");
        let maps = (!uid.is_root()).then(|| {
            let (uid_map, gid_map) = (itself(uid.as_raw()), itself(gid.as_raw()));
            [
                (c"/proc/self/setgroups", "deny".to_owned()),
                (c"/proc/self/uid_map", uid_map),
                (c"/proc/self/gid_map", gid_map),
            ]
        });
        let folder = CString::new(folder.as_os_str().as_bytes()).unwrap();
        Self { folder, size: CString::new(format!("size={bytes},mode=0700")).unwrap(), maps }
    }

    fn make(&self) -> io::Result<()> {
        let user = if self.maps.is_some() { UnshareFlags::NEWUSER } else { UnshareFlags::empty() };
        // SAFETY: this process has one thread and shares nothing that a namespace of its own could take away.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | user) }?;
        for (path, line) in self.maps.iter().flatten() {
            let file = rustix::fs::open(*path, rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty())?;
            rustix::io::write(&file, line.as_bytes())?;
        }
        mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"")?;
        mount(c"none", &self.folder, c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV, &self.size)
    }
}

fn mount(what: &CStr, at: &CStr, kind: &CStr, flags: libc::c_ulong, options: &CStr) -> io::Result<()> {
    // SAFETY: all are strings with a terminator that outlive the call.
    let code = unsafe { libc::mount(what.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, options.as_ptr().cast()) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Mounts an ext4 over the folder, and returns its device's name.
fn ext4_over(folder: &Path, bytes: u64) -> Result<String, String> {
    if !rustix::process::getuid().is_root() {
        return Err("only root may mount an ext4".to_owned());
    }
    let image = image(folder);
    File::create(&image).and_then(|file| file.set_len(bytes)).map_err(|why| why.to_string())?;
    // Nothing kept back for root; after an error of the file system nothing is written any more.
    system("mkfs.ext4", &["-q", "-F", "-m", "0", "-e", "remount-ro"], &[&image])?;
    system("mount", LOOP, &[&image, folder])?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = mounts.lines().rfind(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == folder));
    let device = here.and_then(|line| line.split(" - ").nth(1)?.split(' ').nth(1)?.strip_prefix("/dev/"));
    Ok(device.unwrap().to_owned())
}

/// The file that the ext4 of a folder is in.
fn image(folder: &Path) -> PathBuf {
    folder.with_file_name("image")
}

fn system(program: &str, flags: &[&str], paths: &[&Path]) -> Result<(), String> {
    let ran = Command::new(program).args(flags).args(paths).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output();
    let ran = ran.map_err(|why| format!("{program}: {why}"))?;
    if ran.status.success() { Ok(()) } else { Err(format!("{program}: {}", String::from_utf8_lossy(&ran.stderr))) }
}

impl Disk {
    /// Makes the home's queue with all that belongs to it stand on this disk.
    pub(crate) fn hold(&self, home: &Home) {
        symlink(&self.folder, home.path("data")).unwrap();
    }

    /// Takes all room that is left.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.folder.join(BALLAST)).unwrap();
        let mut piece = &[0_u8; 64 * 1024][..];
        while !piece.is_empty() {
            match file.write(piece) {
                Ok(_) => {}
                Err(why) if why.kind() == io::ErrorKind::StorageFull => piece = &piece[..piece.len() / 2],
                Err(why) => panic!("the disk cannot be filled: {why}"),
            }
        }
    }

    /// Whether not even a small file can be written.
    pub(crate) fn is_full(&self) -> bool {
        let file = self.folder.join("probe");
        let full = fs::write(&file, [0_u8; 4096]).is_err();
        fs::remove_file(file).unwrap();
        full
    }

    /// Gives back what [`Disk::fill`] took.
    pub(crate) fn make_room(&self) {
        fs::remove_file(self.folder.join(BALLAST)).unwrap();
    }

    /// Mounts it anew, without the right to write or with it.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        system("mount", &["-o", if read_only { "remount,ro" } else { "remount,rw" }], &[&self.folder]).unwrap();
    }

    /// Whether [`Disk::break_down`] works here.
    pub(crate) fn can_break(&self) -> bool {
        self.device.as_ref().is_some_and(|device| File::options().write(true).open(trigger(device)).is_ok())
    }

    /// Makes the file system find an error: from now on it takes no writes, whoever has files open.
    pub(crate) fn break_down(&self) {
        fs::write(trigger(self.device.as_ref().unwrap()), "broken by a test").unwrap();
    }

    /// After a breakdown, once nothing on the disk is open; false before that.
    pub(crate) fn mount_again(&self) -> bool {
        if system("umount", &[], &[&self.folder]).is_err() {
            return false;
        }
        system("mount", LOOP, &[&image(&self.folder), &self.folder]).unwrap();
        true
    }
}

fn trigger(device: &str) -> PathBuf {
    Path::new("/sys/fs/ext4").join(device).join("trigger_fs_error")
}
