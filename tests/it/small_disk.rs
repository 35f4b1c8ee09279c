//! A small file system for the box's data: memory, mounted in a namespace of its own, where a
//! stranger's file can take what is free.
//!
//! It needs no root. The box and its commands run in the namespace ([`SmallDisk::around`]); whoever
//! looks in from outside finds it under [`SmallDisk::outside`]. It goes when this process does.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use lakehead::disk;

/// The file system, for as long as it is kept.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    /// Holds the namespace until its input ends.
    holder: Child,
    place: PathBuf,
}

impl SmallDisk {
    /// Mounts one of `bytes` at the folder `place`, which is made.
    pub(crate) fn mount(place: &Path, bytes: u64) -> Self {
        fs::create_dir_all(place).unwrap();
        let script = "mount -t tmpfs -o size=$1,mode=0700 none \"$2\" && echo mounted && exec cat >/dev/null";
        let mut holder = Command::new("unshare")
            .args(["--map-root-user", "--mount", "sh", "-c", script, "sh", &bytes.to_string()])
            .arg(place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said.trim(), "mounted");
        let disk = Self { holder, place: place.to_owned() };
        // Else a link in its path leads out of the namespace, and what a stranger fills is the disk of this machine.
        assert!(disk.free_bytes() <= bytes, "{} is not small", place.display());
        disk
    }

    /// What a command begins with to run where it is mounted.
    pub(crate) fn around(&self) -> Vec<String> {
        let target = format!("--target={}", self.holder.id());
        let words = ["nsenter", &target, "--user", "--mount", "--preserve-credentials"];
        words.map(String::from).to_vec()
    }

    /// Where it is for those outside.
    pub(crate) fn outside(&self) -> PathBuf {
        let inside = self.place.strip_prefix("/").unwrap();
        Path::new("/proc").join(self.holder.id().to_string()).join("root").join(inside)
    }

    /// Bytes that are free.
    pub(crate) fn free_bytes(&self) -> u64 {
        disk::free_bytes(&self.outside()).unwrap()
    }

    /// Has the stranger's file grow until so many bytes are free, if there are more.
    pub(crate) fn leave(&self, bytes: u64) {
        let taken = File::options().create(true).append(true).open(self.stranger()).unwrap();
        let wanted = taken.metadata().unwrap().len() + self.free_bytes().saturating_sub(bytes);
        // The box may be quicker; then it is as full as can be, too.
        if disk::reserve(&taken, wanted).is_ok() {
            taken.set_len(wanted).unwrap();
        }
    }

    /// The stranger's file goes away.
    pub(crate) fn relieve(&self) {
        disk::remove(&self.stranger()).unwrap();
    }

    fn stranger(&self) -> PathBuf {
        self.outside().join("stranger")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // It is gone with its namespace.
            let kept = self.place.with_extension("kept");
            Command::new("cp").arg("-a").arg(self.outside()).arg(&kept).status().ok();
            eprintln!("the small disk's files are kept: {}", kept.display());
        }
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}

#[test]
fn a_small_disk_is_full_when_the_stranger_has_taken_it() {
    let dir = tempfile::tempdir().unwrap();
    let small = SmallDisk::mount(&dir.path().join("data"), 4 << 20);
    fs::write(small.outside().join("ours"), [7; 1 << 20]).unwrap();
    small.leave(1 << 20);
    assert_eq!(small.free_bytes(), 1 << 20);
    small.leave(0);
    let refused = fs::write(small.outside().join("more"), [7; 1 << 16]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
    small.relieve();
    assert!(small.free_bytes() > 2 << 20);
    let [program, words @ ..] = &small.around()[..] else { panic!("no words") };
    let script = format!("test -f {}/ours", dir.path().join("data").display());
    let there = Command::new(program).args(words).args(["sh", "-c", &script]).status().unwrap();
    assert!(there.success() && !dir.path().join("data/ours").exists());
}
