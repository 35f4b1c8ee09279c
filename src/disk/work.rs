//! Folders and files for objects on their way.
//!
//! **Invariant:** they are ours alone: what stands under such a name already, a link too, is an error and is not
//! touched. What proves a file reads it through the handle by which it was written; who opens it by its name relies on
//! the folder's.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Makes a folder in `above`, whose name begins with `stem` and cannot be guessed, with mode 0700.
///
/// # Errors
///
/// `above` is not there, or we may not write there.
pub fn make_dir(above: &Path, stem: &str) -> io::Result<PathBuf> {
    let mut random = [0; 16];
    let filled = aws_lc_rs::rand::fill(&mut random);
    filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
    let path = above.join(format!("{stem}{}", hex::encode(random)));
    DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

/// A file that is removed when it is dropped.
#[derive(Debug)]
pub struct WorkFile {
    file: File,
    path: PathBuf,
}

impl WorkFile {
    /// Makes it, readable by its owner only.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`, or the device refused.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { file, path: path.into() })
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be read from its beginning.
    ///
    /// # Errors
    ///
    /// The device refused.
    pub fn rewound(&self) -> io::Result<&File> {
        (&self.file).rewind()?;
        Ok(&self.file)
    }

    /// The file, to be written from its beginning: nothing is in it.
    ///
    /// # Errors
    ///
    /// As [`WorkFile::rewound`].
    pub fn cleared(&self) -> io::Result<&File> {
        self.file.set_len(0)?;
        self.rewound()
    }

    /// Makes these its bytes.
    ///
    /// # Errors
    ///
    /// As [`WorkFile::rewound`].
    pub fn fill(&self, bytes: &[u8]) -> io::Result<()> {
        self.cleared()?.write_all(bytes)
    }
}

impl Drop for WorkFile {
    fn drop(&mut self) {
        if let Err(error) = super::remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a work file stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn a_work_folder_is_new_private_and_not_to_be_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let [one, other] = [(), ()].map(|()| make_dir(dir.path(), "work-").unwrap());
        assert_ne!(one, other);
        let name = one.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("work-") && name.len() == 37, "{name}");
        let mode = fs::metadata(&one).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        // No folder is made on the way there: who makes one decides who may write into it.
        assert!(make_dir(&dir.path().join("none"), "work-").is_err());
    }

    #[test]
    fn a_work_file_is_not_one_that_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("1.sealed"), dir.path().join("victim"));
        fs::write(&victim, "as it was").unwrap();
        symlink(&victim, &path).unwrap();
        assert_eq!(WorkFile::create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        // Nor is one made where a link points that leads nowhere.
        fs::remove_file(&path).unwrap();
        symlink(dir.path().join("nowhere"), &path).unwrap();
        assert!(WorkFile::create(&path).is_err() && !dir.path().join("nowhere").exists());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "laid").unwrap();
        assert!(WorkFile::create(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "laid");
        assert_eq!(fs::read_to_string(&victim).unwrap(), "as it was");
    }

    #[test]
    fn a_work_file_is_read_by_its_handle_and_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.sealed");
        let file = WorkFile::create(&path).unwrap();
        file.fill(b"a longer first try").unwrap();
        file.fill(b"fetched").unwrap();
        // Another one under its name is another one.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "swapped").unwrap();
        for _ in 0..2 {
            let mut read = String::new();
            file.rewound().unwrap().read_to_string(&mut read).unwrap();
            assert_eq!(read, "fetched");
        }
        drop(file);
        assert!(!path.exists());
    }
}
