//! A program under test, as a child process: started, watched by what it says, stopped or killed.

use std::{
    ffi::OsStr,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// How long a program may take for anything before a test calls it stuck. Nothing is measured against it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often an outside observer looks at a program's admin port, which is how a person would wait too.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running program with its log in a file.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
    admin: SocketAddr,
}

impl Program {
    /// Starts `program` with `arguments`; both output streams are appended to `log`. `admin` is where it will answer
    /// once it runs.
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        arguments: &[A],
        environment: &[(&'static str, String)],
        admin: SocketAddr,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let name = program.file_name().and_then(OsStr::to_str).unwrap_or("program").to_owned();
        let output = fs::File::options().create(true).append(true).open(log)?;
        let child = Command::new(program)
            .args(arguments)
            .envs(environment.iter().map(|(key, value)| (*key, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .kill_on_drop(true)
            // Ctrl-C at a terminal is for whoever started this, who then stops its programs in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { name, child, log: log.to_owned(), admin })
    }

    /// Waits until `/readyz` says yes.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        self.until("is ready", async |admin| {
            admin.get("/readyz").await.is_ok_and(|reply| reply.status == 200)
        })
        .await
    }

    /// Waits until `condition` holds of the running program. Fails with the end of its log if it exits or never gets
    /// there.
    pub async fn until(&mut self, what: &str, condition: impl AsyncFn(Admin) -> bool) -> anyhow::Result<()> {
        let admin = Admin(self.admin);
        let looking = async {
            loop {
                if condition(admin).await {
                    return Ok(());
                }
                if let Some(status) = self.child.try_wait()? {
                    bail!("{} ended with {status} before it {what}", self.name);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let outcome = match tokio::time::timeout(PATIENCE, looking).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("{} is not so that it {what} after {PATIENCE:?}", self.name)),
        };
        outcome.with_context(|| format!("its log ends:\n{}", self.log_tail()))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its admin port.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin(self.admin)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How much memory it holds, in bytes: now, and at most since it started.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let pid = self.pid().context("it has ended already")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("its /proc entry")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            kib.map(|kib| kib * 1024).with_context(|| format!("no {name} in its /proc entry"))
        };
        Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
    }

    /// Seconds of CPU that it has used, in user and kernel mode.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let pid = self.pid().context("it has ended already")?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("its /proc entry")?;
        // The name in parentheses may hold anything; behind the last of them the fields are numbers.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| -> anyhow::Result<u64> {
            Ok(fields.get(at).context("/proc/PID/stat is short")?.parse()?)
        };
        Ok((ticks(11)? + ticks(12)?) as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// SIGKILL: no goodbye, no flush.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        kill_process(pid.context("it has ended already")?, signal).context("signal")
    }

    /// SIGTERM, then its own orderly end.
    pub async fn stop(self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait().await
    }

    /// Waits for it to end by itself.
    pub async fn wait(mut self) -> anyhow::Result<ExitStatus> {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("{} did not end; its log ends:\n{}", self.name, self.log_tail()),
        }
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.log_text();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Everything it has said.
    #[must_use]
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Memory of a process, as far as it is in RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes that it holds.
    pub now: u64,
    /// The most that it held.
    pub peak: u64,
}

/// The admin port of a program.
#[derive(Clone, Copy, Debug)]
pub struct Admin(pub SocketAddr);

/// An answer of the admin port.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// The whole body.
    pub body: String,
}

impl Admin {
    /// One GET on a connection of its own.
    pub async fn get(self, path: &str) -> anyhow::Result<Reply> {
        self.request(http::Method::GET, path).await
    }

    /// One POST without a body.
    pub async fn post(self, path: &str) -> anyhow::Result<Reply> {
        self.request(http::Method::POST, path).await
    }

    /// `/statusz`.
    pub async fn status(self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.get("/statusz").await?.body).context("/statusz is no JSON")
    }

    async fn request(self, method: http::Method, path: &str) -> anyhow::Result<Reply> {
        use http_body_util::{BodyExt as _, Empty};
        let stream = tokio::net::TcpStream::connect(self.0).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .body(Empty::<bytes::Bytes>::new())?;
        let reply = sender.send_request(request).await?;
        let status = reply.status().as_u16();
        let body = String::from_utf8(reply.into_body().collect().await?.to_bytes().to_vec())?;
        driver.abort();
        Ok(Reply { status, body })
    }

    /// The sum over all label sets of one metric, 0 if it is absent.
    pub async fn metric(self, name: &str) -> anyhow::Result<f64> {
        self.metric_where(name, "").await
    }

    /// The sum over those label sets of one metric whose text contains `label`.
    pub async fn metric_where(self, name: &str, label: &str) -> anyhow::Result<f64> {
        let page = self.get("/metrics").await?.body;
        let mut sum = 0.0;
        for line in page.lines() {
            let Some(rest) = line.strip_prefix(name) else { continue };
            if !rest.starts_with(['{', ' ']) || !rest.contains(label) {
                continue;
            }
            let value = rest.rsplit(' ').next().unwrap_or_default();
            sum += value.parse::<f64>().with_context(|| format!("metric line {line:?}"))?;
        }
        Ok(sum)
    }
}

/// An address on loopback that is free, and that nobody else is given as long as this process lives. A program under test
/// needs it in its configuration before it starts, and keeps it over restarts; so it is taken from below the range out of which
/// the kernel gives ports to outgoing connections. Tests run beside each other, in processes of their own: who has drawn a port
/// holds the lock on a file of that name.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    const FIRST: u16 = 10_240;
    const COUNT: u32 = 22_000;
    const TRIES: usize = 100;
    static HELD: Mutex<Vec<fs::File>> = Mutex::new(Vec::new());
    let folder = std::env::temp_dir().join(format!("pithead-ports-{}", rustix::process::getuid().as_raw()));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for _ in 0..TRIES {
        let draw = getrandom::u32().context("the kernel gives no randomness")? % COUNT;
        let port = FIRST + u16::try_from(draw)?;
        let lock = fs::File::create(folder.join(port.to_string()))?;
        if lock.try_lock().is_err() {
            continue;
        }
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            HELD.lock().unwrap_or_else(PoisonError::into_inner).push(lock);
            return Ok(listener.local_addr()?);
        }
    }
    bail!("no free port on loopback after {TRIES} tries")
}
