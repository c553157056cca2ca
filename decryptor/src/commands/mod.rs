//! The subcommands. Each module has its `Args` (clap) and `run(args) -> Result<(), ProgramError>` (`verify` gives
//! the exit code as well): `main` parses and delegates,
//! tests call the same function.

pub mod authority;
pub mod bundle;
pub mod check;
pub mod config;
pub mod device;
pub mod init;
pub mod inspect;
pub mod open;
pub mod run;
pub mod site;
pub mod status;
pub mod verify;
