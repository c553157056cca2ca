//! The three programs, as they are shipped.
//!
//! Cargo unifies features over one build: a workspace build compiles the sealing crate with `open` for everybody. The
//! gateway that is shown and tested here is therefore built by an invocation of its own (`cargo build -p
//! pithead-gateway`), and a test asks the binary itself whether the opener is in it.
//!
//! Set `PITHEAD_BIN_DIR` to a folder with the three programs to use those and build nothing; `PITHEAD_TRACED_BIN_DIR` for those
//! that export spans.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, bail};

/// Where the three programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    folder: PathBuf,
}

impl Binaries {
    /// Builds them if needed, once per process. Concurrent processes wait for each other.
    pub fn get() -> anyhow::Result<&'static Self> {
        static BUILT: OnceLock<Binaries> = OnceLock::new();
        // One build per package set: the gateway's must not see the decryptor's features.
        let shipped: &[&[&str]] =
            &[&["-p", "pithead-gateway"], &["-p", "pithead-decryptor", "-p", "pithead-device-client"]];
        Self::once(&BUILT, "PITHEAD_BIN_DIR", "shipped", shipped)
    }

    /// The same, built with the feature `otlp`. In one build, so the gateway of it has the opener: nothing but a test of spans runs it.
    pub fn exporting_spans() -> anyhow::Result<&'static Self> {
        static BUILT: OnceLock<Binaries> = OnceLock::new();
        let all = ["-p", "pithead-gateway", "-p", "pithead-decryptor", "-p", "pithead-device-client"];
        let traced =
            [all.as_slice(), &["--features", "pithead-gateway/otlp,pithead-decryptor/otlp"]].concat();
        Self::once(&BUILT, "PITHEAD_TRACED_BIN_DIR", "traced", &[&traced])
    }

    fn once(
        built: &'static OnceLock<Self>,
        variable: &str,
        name: &str,
        builds: &[&[&str]],
    ) -> anyhow::Result<&'static Self> {
        if let Some(built) = built.get() {
            return Ok(built);
        }
        let folder = match env::var_os(variable) {
            Some(folder) => PathBuf::from(folder),
            None => build(name, builds)?,
        };
        Ok(built.get_or_init(|| Self { folder }))
    }

    /// `pithead-gateway`
    #[must_use]
    pub fn gateway(&self) -> PathBuf {
        self.folder.join("pithead-gateway")
    }

    /// `pithead-decryptor`
    #[must_use]
    pub fn decryptor(&self) -> PathBuf {
        self.folder.join("pithead-decryptor")
    }

    /// `pithead-device`
    #[must_use]
    pub fn device(&self) -> PathBuf {
        self.folder.join("pithead-device")
    }
}

/// The workspace's root folder.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate lies in the workspace")
}

/// Cargo, as it builds what is shipped: whatever this process was built with, features are not unified over the workspace.
#[must_use]
pub fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace()).env_remove("CARGO_RESOLVER_FEATURE_UNIFICATION");
    cargo
}

/// Runs each of `builds`, and puts what they made into the folder `name` beside what cargo builds.
fn build(name: &str, builds: &[&[&str]]) -> anyhow::Result<PathBuf> {
    let current = env::current_exe().context("path of this program")?;
    // target/PROFILE/demo, or target/PROFILE/deps/some_test-HASH.
    let profile_folder = current
        .ancestors()
        .skip(1)
        .find(|folder| !folder.ends_with("deps") && !folder.ends_with("examples"))
        .context("this program does not lie in a target folder")?;
    let release = profile_folder.ends_with("release");
    let target_folder = profile_folder.parent().context("this program does not lie in a target folder")?;
    let folder = profile_folder.join(name);
    fs::create_dir_all(&folder)?;
    // All builds put their programs into one place: from the first of them to the last copy it is ours.
    let turn = fs::File::create(profile_folder.join("programs.lock"))?;
    turn.lock().context("waiting for a turn to build")?;
    for chosen in builds {
        let mut cargo = cargo();
        cargo.args(["build", "--quiet", "--bins", "--target-dir"]).arg(target_folder).args(*chosen);
        if release {
            cargo.arg("--release");
        }
        if !cargo.stdin(Stdio::null()).status().context("cargo build")?.success() {
            bail!("cargo could not build {chosen:?}; its own messages stand above");
        }
    }
    for name in ["pithead-gateway", "pithead-decryptor", "pithead-device"] {
        install(&profile_folder.join(name), &folder.join(name))?;
    }
    Ok(folder)
}

/// Links the program under its shipped place, so that a later workspace build with other features, which writes to
/// the same path in the target folder, does not change what is being tested.
fn install(built: &Path, shipped: &Path) -> anyhow::Result<()> {
    let staged = shipped.with_extension(std::process::id().to_string());
    fs::copy(built, &staged).with_context(|| format!("copying {}", built.display()))?;
    #[expect(
        clippy::disallowed_methods,
        reason = "atomic replacement among test processes; nothing here must survive a power cut"
    )]
    let renamed = fs::rename(&staged, shipped);
    match renamed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("installing {}", shipped.display())),
    }
}
