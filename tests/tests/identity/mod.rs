//! Who the devices are, with the real programs: from an empty box to the first envelope, revocation, reload, and devices that
//! are known by their address alone.

mod configuration;
mod enroll;
mod network;
mod reload;
mod renew;
mod revoke;

use std::{
    fs,
    future::Future,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pithead_hop::{
    keys::{Held, KeyClient, Watch},
    status::Remote,
};
use pithead_sealing::Site as SiteName;
use pithead_tests::{
    authority::AUTHORITY,
    certificates::Certificate,
    client::Client,
    command::{self, Finished},
    program::{PATIENCE, Program},
    site::{SITE, Site, SiteOptions},
};
use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What is promised of a revocation.
const PROMISED: Duration = Duration::from_secs(5);

/// A site whose gateway was made by `init` alone, running. The second value is where devices enrol.
async fn made_by_init() -> (Site, SocketAddr) {
    let mut site = Site::create(SiteOptions::default()).await.unwrap();
    let enroll = pithead_tests::program::free_address().unwrap();
    let made = site.folder().join("made");
    init(&site, &made, enroll).await.ok().unwrap();
    for entry in fs::read_dir(&made).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, site.folder().join("gateway").join(path.file_name().unwrap())).unwrap();
        }
    }
    fs::copy(made.join("site-ca.pem"), site.folder().join("cloud/site-ca.pem")).unwrap();
    site.start_decryptor().await.unwrap();
    site.start_gateway().await.unwrap();
    (site, enroll)
}

async fn init(site: &Site, dir: &Path, enroll: SocketAddr) -> Finished {
    let text = |path: &Path| path.display().to_string();
    let arguments = [
        "init".to_owned(),
        text(dir),
        "--site".into(),
        SITE.into(),
        "--name".into(),
        "edge-1".into(),
        "--host".into(),
        "127.0.0.1".into(),
        "--host".into(),
        "localhost".into(),
        "--authority".into(),
        AUTHORITY.into(),
        "--root".into(),
        text(&site.authority.root()),
        "--upstream".into(),
        site.link.address().to_string(),
        "--upstream-ca".into(),
        text(site.cloud_ca.path()),
        "--listen".into(),
        site.gateway_address().to_string(),
        "--enroll-listen".into(),
        enroll.to_string(),
        "--admin-listen".into(),
        site.gateway_admin().to_string(),
    ];
    command::run(&site.programs().gateway(), arguments, &[]).await.unwrap()
}

/// The command that `device add` prints, as a person would type it in another folder: `--dir` and `--root` say where.
struct Printed(Vec<String>);

impl Printed {
    async fn of(site: &Site, device: &str) -> Self {
        let said = site.gateway_command(&["device", "add", device]).await.unwrap().ok().unwrap().stdout;
        let line = said.lines().find(|line| line.starts_with("pithead-device enroll")).expect(&said);
        let mut words: Vec<String> = line.split(' ').skip(1).map(str::to_owned).collect();
        let root = site.authority.root().display().to_string();
        let folder = site.device(device).folder().display().to_string();
        *Self::value_in(&mut words, "--root") = root;
        *Self::value_in(&mut words, "--dir") = folder;
        Self(words)
    }

    fn value_in<'a>(words: &'a mut [String], option: &str) -> &'a mut String {
        let at = words.iter().position(|word| word == option).unwrap_or_else(|| panic!("no {option}"));
        &mut words[at + 1]
    }

    fn get(&self, option: &str) -> String {
        Self::value_in(&mut self.0.clone(), option).clone()
    }

    fn with(&self, option: &str, value: impl ToString) -> Self {
        let mut words = self.0.clone();
        *Self::value_in(&mut words, option) = value.to_string();
        Self(words)
    }

    fn without(&self, option: &str) -> Self {
        let mut words = self.0.clone();
        let at = words.iter().position(|word| word == option).unwrap();
        words.drain(at..at + 2);
        Self(words)
    }

    fn and(&self, option: &str, value: impl ToString) -> Self {
        let mut words = self.0.clone();
        words.extend([option.to_owned(), value.to_string()]);
        Self(words)
    }

    async fn run(&self, site: &Site) -> Finished {
        let words = self.0.iter().cloned().chain(["-o".to_owned(), "json".to_owned()]);
        command::run(&site.programs().device(), words, &[]).await.unwrap()
    }
}

/// The certificate of an enrolled device.
fn files_of(site: &Site, device: &str) -> Certificate {
    let folder = site.device(device).folder().to_owned();
    Certificate { certificate: folder.join("device.pem"), key: folder.join("device.key") }
}

/// A connection with a call open on it.
async fn watching(to: SocketAddr, ca: &Path, identity: &Certificate) -> (Client, Watch) {
    let client = Client::connect(to, ca, Some(identity)).await.unwrap().unwrap();
    let watch = keys(&client).watch(&Held::default()).await.unwrap();
    (client, watch)
}

fn keys(client: &Client) -> KeyClient {
    KeyClient::new(client.connection(), AUTHORITY, SiteName::new(SITE).unwrap())
}

/// Within what was promised, or the test fails with a name.
async fn in_time<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PROMISED, event).await.unwrap_or_else(|_| panic!("not within 5 s: {what}"))
}

/// SIGHUP, and waits until the program has said that this came of it.
async fn hang_up(program: &Program, event: &str) {
    let said = || program.log_text().matches(event).count();
    let before = said();
    program.signal(Signal::HUP).unwrap();
    let wait = async {
        while said() == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, wait).await;
    assert!(done.is_ok(), "no {event}; its log ends:\n{}", program.log_tail());
}

/// A healthy device that asks all the time, on the connection that it has and on new ones. A call that does not go well is a
/// panic.
struct Neighbour {
    calls: Arc<AtomicU64>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Neighbour {
    fn start(to: SocketAddr, ca: &Path, identity: &Certificate) -> Self {
        let (calls, stop) = (Arc::<AtomicU64>::default(), CancellationToken::new());
        let (ca, identity) = (ca.to_owned(), identity.clone());
        let task = tokio::spawn({
            let (calls, stop) = (calls.clone(), stop.clone());
            async move {
                let steady = Client::connect(to, &ca, Some(&identity)).await.unwrap().unwrap();
                for turn in 0.. {
                    if stop.is_cancelled() {
                        break;
                    }
                    // Not at every turn: one identity has four connections, and those that were left have to be noticed.
                    let fresh = if turn % 5 == 0 {
                        Some(
                            Client::connect(to, &ca, Some(&identity))
                                .await
                                .unwrap()
                                .expect("a new connection"),
                        )
                    } else {
                        None
                    };
                    for client in [Some(&steady), fresh.as_ref()].into_iter().flatten() {
                        let answer =
                            keys(client).fetch(&Held::default(), PATIENCE).await.expect("a healthy call");
                        assert!(answer.bundle.is_some());
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                    // Below the rate of one identity.
                    tokio::time::sleep(Duration::from_millis(25)).await;
                }
                assert!(!steady.connection().is_ended(), "its connection was cut");
            }
        });
        Self { calls, stop, task }
    }

    /// Waits until it has made further calls, a new connection's among them.
    async fn goes_on(&self) {
        let before = self.calls.load(Ordering::Relaxed);
        let further = async {
            while self.calls.load(Ordering::Relaxed) < before + 7 && !self.task.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, further).await.expect("the neighbour makes no calls");
        assert!(!self.task.is_finished(), "the neighbour has lost a call");
    }

    async fn end(self) {
        self.goes_on().await;
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn reason(remote: &Remote) -> pithead_proto::errors::v1::ErrorReason {
    remote.reason.unwrap_or_else(|| panic!("a refusal without a reason: {remote:?}"))
}
