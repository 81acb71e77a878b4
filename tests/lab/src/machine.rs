//! A Debian host of its own: a release's chroot, booted by its own systemd, with packages to install and services to run.
//!
//! Takes: the root folder of a release (`tests/chroot`). Gives: a machine whose programs are run in it; what they change is
//! gone with it, the chroot stays as it is. Its network is the one that the test is in (`host`): give that one of its own.
//! Limits: root with CAP_SYS_ADMIN, overlayfs and cgroup2; `BOOT` to come up.
//! When it fails: a text with what the machine said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long it may take to boot.
const BOOT: Duration = Duration::from_secs(60);

/// How often a command is woken, should it have been stopped.
const WAKE: Duration = Duration::from_secs(1);

/// What becomes the machine's first process, in new namespaces: first it gets control groups of its own, for systemd takes
/// all that it sees for its own, and two machines would end each other's services.
const FIRST: &str = r#"
layer=$2 name=$3
mount -t tmpfs tmpfs "$layer"
mkdir "$layer/upper" "$layer/work" "$layer/root" "$layer/cgroup"
mount -t cgroup2 cgroup2 "$layer/cgroup"
mkdir "$layer/cgroup/$name"
echo 0 >"$layer/cgroup/$name/cgroup.procs"
umount "$layer/cgroup"
exec unshare --cgroup -- bash -euc "$4" init "$1" "$layer"
"#;

/// What it goes on with, in control groups of its own.
const INIT: &str = r#"
root=$1 layer=$2
mount -t overlay overlay -o "lowerdir=$root,upperdir=$layer/upper,workdir=$layer/work" "$layer/root"
cd "$layer/root"
mount -t proc proc proc
mount -t sysfs -o ro sys sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
# Services start when their packages are installed, as on a real host.
rm -f usr/sbin/policy-rc.d
rm -f etc/resolv.conf
printf 'nameserver 127.0.0.1\noptions trust-ad edns0\n' >etc/resolv.conf
echo machine >etc/hostname
hostname machine
# As a container's manager leaves it to systemd: the root of its namespace, shared, so that credentials are seen.
mkdir .host
pivot_root . .host
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . \
    sh -c 'umount -l /.host && rmdir /.host && mount --make-rshared / && exec /lib/systemd/systemd --system'
"#;

/// Removes the control groups that a machine leaves, once its last process is gone.
const CLEAR: &str = r#"
mount -t cgroup2 cgroup2 "$1"
for _ in $(seq 50); do
    find "$1/$2" -depth -type d -exec rmdir {} + 2>/dev/null && break
    sleep 0.1
done
umount "$1"
"#;

/// A booted machine. It is gone when it is dropped.
#[derive(Debug)]
pub struct Machine {
    unshare: Child,
    init: u32,
    /// Of its control groups.
    name: String,
    _layer: tempfile::TempDir,
}

impl Machine {
    /// Boots it.
    pub fn boot(root: &Path) -> Result<Machine, String> {
        let layer = tempfile::tempdir().map_err(|e| format!("the folder for temporary files: {e}"))?;
        // A random one, as the folder's is.
        let name = format!("lab{}", layer.path().file_name().unwrap_or_default().to_string_lossy());
        let mut unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--"])
            .args(["bash", "-euc", FIRST, "first"])
            .args([root, layer.path()])
            .args([&name, INIT])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|e| format!("needs unshare (util-linux): {e}"))?;
        let begin = Instant::now();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let mut up = || {
            if let Ok(Some(status)) = unshare.try_wait() {
                return Err(format!("the machine does not boot: {status} (it needs CAP_SYS_ADMIN; see above)"));
            }
            Ok(fs::read_to_string(&children).ok().and_then(|text| text.split_whitespace().next()?.parse::<u32>().ok()))
        };
        let init = loop {
            match up()? {
                Some(init) => break init,
                None if begin.elapsed() > BOOT => return Err("the machine does not boot".into()),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let machine = Machine { unshare, init, name, _layer: layer };
        loop {
            // `degraded` where a service of the release does not like a container.
            let state = machine.output("systemctl is-system-running").1;
            if state.contains("running") || state.contains("degraded") {
                return Ok(machine);
            }
            if begin.elapsed() > BOOT {
                return Err(format!("the machine is not up: {state}"));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Where a file of the machine is seen from here.
    pub fn path(&self, file: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.init)).join(file.trim_start_matches('/'))
    }

    /// A shell command as root: whether it went well, and what it printed.
    pub fn output(&self, command: &str) -> (bool, String) {
        let spawned = self.command(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let output = spawned.and_then(|child| {
            let pid = Pid::from_child(&child);
            let (done, ended) = mpsc::channel::<()>();
            thread::scope(|scope| {
                // systemd stops all processes while it goes down. nsenter stops itself with its child, and nobody in the
                // machine can wake it.
                scope.spawn(move || {
                    while ended.recv_timeout(WAKE) == Err(RecvTimeoutError::Timeout) {
                        let _ = kill_process(pid, Signal::CONT);
                    }
                });
                let output = child.wait_with_output();
                drop(done);
                output
            })
        });
        output.map_or_else(
            |e| (false, format!("needs nsenter (util-linux): {e}")),
            |out| (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()),
        )
    }

    /// The same; what does not go well is an error.
    pub fn run(&self, command: &str) -> Result<String, String> {
        match self.output(command) {
            (true, text) => Ok(text),
            (false, text) => Err(format!("{command}: {text}\n{}", self.journal())),
        }
    }

    /// The end of the journal.
    pub fn journal(&self) -> String {
        self.output("journalctl --no-pager -n 60").1
    }

    /// A shell command, to be run.
    pub fn command(&self, command: &str) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter
            .args(["-t", &self.init.to_string(), "--all", "--root", "--wd", "--", "env", "-i"])
            .args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8"])
            .args(["sh", "-euc", command])
            .stdin(Stdio::null());
        nsenter
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its first process goes with it (--kill-child), and with that all others.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
        let Ok(folder) = tempfile::tempdir() else { return };
        let mut clear = Command::new("unshare");
        clear.args(["--mount", "--", "bash", "-euc", CLEAR, "clear"]).arg(folder.path()).arg(&self.name);
        let _ = clear.status();
    }
}
