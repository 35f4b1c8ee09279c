//! `lakehead store`: the demo's S3 store as a process of its own. In builds with the feature `demo` only.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;

use super::{Failure, Global};
use crate::{
    demo::store::{self, StoreOptions},
    error::Exit,
};

#[derive(Args, Debug)]
pub(super) struct StoreArgs {
    /// Where it keeps what it stores, and the credentials and certificate of this start.
    #[arg(long)]
    dir: PathBuf,
    /// Where it listens: loopback only; port 0 for any.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Without TLS.
    #[arg(long)]
    plain: bool,
}

pub(super) async fn store(global: &Global, args: StoreArgs) -> Result<Exit, Failure> {
    let StoreArgs { dir, listen, plain } = args;
    let (output, what) = (global.output(), format!("keep a store in {}", dir.display()));
    store::serve(&StoreOptions { dir, listen, tls: !plain }, |report| output.tell(report, report))
        .await
        .map_err(|why| Failure::system(&what, &why))?;
    Ok(Exit::Done)
}
