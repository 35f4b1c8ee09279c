//! A standby of a cluster, as failover needs one, and a backup to go back to.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use super::{
    super::ground::make_home, Cluster, ClusterError, SUPERUSER, Stop, file_error, program_error,
};

impl Cluster {
    /// Makes a standby of this server in `dir`, from a base backup, and starts it. It follows until it
    /// is told to be a primary (`pg_promote()`).
    ///
    /// # Errors
    ///
    /// See [`ClusterError`]; no standby runs then.
    pub fn standby(&self, dir: &Path) -> Result<Self, ClusterError> {
        let mut standby = self.unmade_standby(dir)?;
        let mut command = standby.command("pg_basebackup");
        command.arg("-D").arg(&standby.home).arg("-p").arg(self.port.to_string());
        command.args([
            "-h",
            "127.0.0.1",
            "-U",
            SUPERUSER,
            "-X",
            "stream",
            "-c",
            "fast",
            "-R",
            "--no-sync",
        ]);
        let run = command.env("PGPASSWORD", &self.password).stdin(Stdio::null()).output();
        let run = run.map_err(|why| program_error("pg_basebackup", &why))?;
        if !run.status.success() {
            let said = String::from_utf8_lossy(&run.stderr).trim().to_owned();
            return Err(ClusterError::Program { program: "pg_basebackup", said });
        }
        standby.start_somewhere()?;
        Ok(standby)
    }

    /// Makes a standby as [`Cluster::standby`] does, by no program but the server's own: stops this server, copies
    /// its files, and starts both.
    ///
    /// # Errors
    ///
    /// See [`ClusterError`]; no standby runs then.
    pub fn standby_of_copy(&mut self, dir: &Path) -> Result<Self, ClusterError> {
        let mut standby = self.unmade_standby(dir)?;
        self.stop(Stop::Fast);
        copy_all(&self.home.join("."), &standby.home)?;
        self.start()?;
        let slots = standby.home.join("pg_replslot");
        fs::remove_dir_all(&slots).map_err(|why| file_error("remove", &slots, why))?;
        fs::create_dir(&slots).map_err(|why| file_error("make", &slots, why))?;
        self.give(&slots, 0o700)?;
        standby.write("standby.signal", "")?;
        standby.follow(self.port)?;
        standby.start_somewhere()?;
        Ok(standby)
    }

    /// Has a standby reach its primary by another port of this machine; that holds from the next start or reload.
    ///
    /// # Errors
    ///
    /// Its settings cannot be written.
    pub fn follow(&self, port: u16) -> Result<(), ClusterError> {
        let primary = format!(
            "host=127.0.0.1 port={port} user={SUPERUSER} password={} dbname=postgres",
            self.password
        );
        self.set(&[("primary_conninfo", &primary)])
    }

    fn unmade_standby(&self, dir: &Path) -> Result<Self, ClusterError> {
        Ok(Self {
            dir: dir.into(),
            home: make_home(dir, self.owner)?,
            binaries: self.binaries.clone(),
            port: 0,
            password: self.password.clone(),
            owner: self.owner,
            environment: vec![],
            server: None,
        })
    }

    /// Copies the stopped server's files to `dir`, which is not there yet.
    ///
    /// # Errors
    ///
    /// They cannot be copied.
    pub fn back_up(&self, dir: &Path) -> Result<(), ClusterError> {
        copy_all(&self.home, dir)
    }

    /// Puts the stopped server back to what [`Cluster::back_up`] copied to `dir`.
    ///
    /// # Errors
    ///
    /// The files cannot be replaced.
    pub fn go_back(&self, dir: &Path) -> Result<(), ClusterError> {
        fs::remove_dir_all(&self.home).map_err(|why| file_error("remove", &self.home, why))?;
        copy_all(dir, &self.home)
    }

    /// Copies a replication slot from another server, with the snapshots from which it decodes. Both are stopped.
    ///
    /// # Errors
    ///
    /// The slot's files cannot be read or written.
    pub fn copy_slot(&self, from: &Self, slot: &str) -> Result<(), ClusterError> {
        let place = |cluster: &Self| cluster.home.join("pg_logical").join("snapshots");
        let (there, here) = (place(from), place(self));
        fs::remove_dir_all(&here).map_err(|why| file_error("remove", &here, why))?;
        copy_all(&there, &here)?;
        self.copy_slot_alone(from, slot)
    }

    /// Copies a replication slot from another server, as tools for failover do for servers before 17. Without its
    /// snapshots the server decodes only what began when all transactions that were open where it begins had ended:
    /// of others it sends nothing, and says nothing. Both are stopped.
    ///
    /// # Errors
    ///
    /// The slot's files cannot be read or written.
    pub fn copy_slot_alone(&self, from: &Self, slot: &str) -> Result<(), ClusterError> {
        let place = |cluster: &Self| cluster.home.join("pg_replslot").join(slot);
        let (there, here) = (place(from), place(self));
        fs::create_dir_all(&here).map_err(|why| file_error("make", &here, why))?;
        self.give(&here, 0o700)?;
        let state = here.join("state");
        fs::copy(there.join("state"), &state).map_err(|why| file_error("copy", &state, why))?;
        self.give(&state, 0o600)
    }
}

pub(super) fn copy_all(from: &Path, to: &Path) -> Result<(), ClusterError> {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).output();
    let copied = copied.map_err(|why| program_error("cp", &why))?;
    match copied.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&copied.stderr).trim().to_owned();
            Err(ClusterError::Program { program: "cp", said })
        }
    }
}
