//! A cluster as `initdb` makes it; and one kept to be copied, for those who make hundreds.

use std::{fs, path::Path, process::Stdio};

use super::{
    super::ground::random_hex, Cluster, ClusterError, SUPERUSER, disk, file_error, program_error,
    standby::copy_all,
};

impl Cluster {
    /// Has `initdb` make it.
    pub(super) fn initialize(&self) -> Result<(), ClusterError> {
        let word = self.home.with_extension("word");
        fs::write(&word, &self.password).map_err(|why| file_error("write", &word, why))?;
        self.give(&word, 0o600)?;
        let mut command = self.command("initdb");
        command.arg("-D").arg(&self.home).arg("-U").arg(SUPERUSER).arg("--pwfile").arg(&word);
        command.args(INITDB);
        let run = command.stdin(Stdio::null()).output();
        disk::remove(&word).map_err(|why| file_error("remove", &word, why))?;
        let run = run.map_err(|why| program_error("initdb", &why))?;
        if !run.status.success() {
            let said = String::from_utf8_lossy(&run.stderr).trim().to_owned();
            return Err(ClusterError::Program { program: "initdb", said });
        }
        Ok(())
    }

    /// Fills the home with the cluster that `kept` has of these programs, or has `initdb` make one and
    /// keeps it there. Copies of one have the same password and **the same system identifier**.
    pub(super) fn initialize_from(&mut self, kept: &Path) -> Result<(), ClusterError> {
        let made = format!("{} {} {INITDB:?}", self.version()?, self.binaries.display());
        let here = kept.join(format!("{:08x}", crc32c::crc32c(made.as_bytes())));
        if !here.exists() {
            self.initialize()?;
            return self.keep(kept, &here);
        }
        let word = here.join(WORD);
        let password = fs::read_to_string(&word);
        self.password = password.map_err(|why| file_error("read", &word, why))?;
        copy_all(&here.join(FILES).join("."), &self.home)
    }

    /// Others may do the same at the same time: the first one counts.
    fn keep(&self, kept: &Path, here: &Path) -> Result<(), ClusterError> {
        let making = kept.join(random_hex()?);
        fs::create_dir_all(&making).map_err(|why| file_error("make", &making, why))?;
        copy_all(&self.home, &making.join(FILES))?;
        let word = making.join(WORD);
        disk::write_durably(&word, self.password.as_bytes())
            .map_err(|why| file_error("write", &word, why))?;
        match disk::rename(&making, here) {
            Err(_) if here.exists() => {
                fs::remove_dir_all(&making).map_err(|why| file_error("remove", &making, why))
            }
            moved => moved.map_err(|why| file_error("rename", &making, why)),
        }
    }
}

const INITDB: [&str; 6] = ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"];
const FILES: &str = "files";
const WORD: &str = "word";

#[cfg(test)]
mod tests {
    use super::super::*;

    #[tokio::test]
    async fn a_cluster_that_was_kept_serves_as_one_that_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Some(dir.path().join("kept"));
        let tasks = Tasks::new();
        let mut identifiers = vec![];
        for name in ["first", "copy"] {
            let options = ClusterOptions {
                dir: dir.path().join(name),
                kept: kept.clone(),
                settings: vec![("work_mem".into(), "3MB".into())],
                ..ClusterOptions::default()
            };
            let cluster = Cluster::create(&options).unwrap();
            let client = cluster.connect("postgres", &tasks).await.unwrap();
            let row = client
                .query_one(
                    "SELECT system_identifier, current_setting('work_mem') FROM pg_control_system()",
                    &[],
                )
                .await
                .unwrap();
            identifiers.push(row.get::<_, i64>(0));
            assert_eq!(row.get::<_, String>(1), "3MB");
        }
        assert_eq!(identifiers[0], identifiers[1]);
        assert_eq!(fs::read_dir(dir.path().join("kept")).unwrap().count(), 1);
    }
}
