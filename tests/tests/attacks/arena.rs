//! A gateway, a healthy client that works all the time, and what both are asked afterwards.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pithead_tests::{
    client::Client,
    forge::{Claim, Forge},
    program::{Admin, Memory},
    site::{KeySource, SITE, Site, SiteOptions},
};
use tokio::task::JoinHandle;

/// The healthy client's pace: below the rate that every identity has.
const PACE: Duration = Duration::from_millis(25);
/// How long it works before anybody attacks.
const BASELINE: Duration = Duration::from_millis(1500);
/// Every so many calls it comes on a new connection, as a vehicle does that was out of reach.
const RECONNECT: u64 = 20;

pub(crate) struct Arena {
    pub(crate) site: Site,
    healthy: Healthy,
    baseline: Vec<Duration>,
    before: (Memory, f64, Instant),
}

/// Limits that make a test short; everything else is as it ships.
pub(crate) type Lines<'a> = &'a [&'a str];

impl Arena {
    /// A gateway with these lines in `[ingest.limits]`, and a client that has worked at it for a while.
    pub(crate) async fn open(lines: Lines<'_>) -> Self {
        Self::over(site(lines).await, true).await
    }

    /// The same at a site that runs already. `reconnects`: the client comes on new connections too.
    pub(crate) async fn over(mut site: Site, reconnects: bool) -> Self {
        let healthy = Healthy::start(&site, reconnects).await;
        tokio::time::sleep(BASELINE).await;
        let baseline = healthy.so_far();
        let gateway = site.gateway().unwrap();
        let before = (gateway.memory().unwrap(), gateway.cpu_seconds().unwrap(), Instant::now());
        Self { site, healthy, baseline, before }
    }

    pub(crate) fn admin(&mut self) -> Admin {
        self.site.gateway().unwrap().admin()
    }

    /// Waits until the metric stands at `least` or above.
    pub(crate) async fn until_counted(&mut self, metric: &str, label: &str, least: u64) {
        let what = format!("counts {least} of {metric} {label}");
        let counted = async |admin: Admin| {
            admin.metric_where(metric, label).await.is_ok_and(|count| count >= least as f64)
        };
        if let Err(error) = self.site.gateway().unwrap().until(&what, counted).await {
            let page = self.admin().get("/metrics").await.map(|reply| reply.body).unwrap_or_default();
            let lines: Vec<&str> =
                page.lines().filter(|line| !line.starts_with('#') && !line.ends_with(" 0")).collect();
            panic!("{error:#}\n{}", lines.join("\n"));
        }
    }

    /// Connections that have ended in this way.
    pub(crate) async fn until_ended(&mut self, how: &str, least: u64) {
        self.until_counted("pithead_connections_ended_total", &format!("\"{how}\""), least).await;
    }

    /// Handshakes that have ended in this way.
    pub(crate) async fn until_shaken(&mut self, how: &str, least: u64) {
        self.until_counted("pithead_handshakes_total", &format!("\"{how}\""), least).await;
    }

    /// Ends the client's work, and asserts what must hold after every attack: it has lost no call, memory grew by at most
    /// `memory_mib`, and nothing panicked.
    #[expect(clippy::print_stdout, reason = "the healthy client's times beside its baseline")]
    pub(crate) async fn closes(mut self, attack: &str, memory_mib: u64) {
        let during = self.healthy.finish().await;
        let after = &during[self.baseline.len().min(during.len())..];
        let (before, cpu, began) = self.before;
        let gateway = self.site.gateway().unwrap();
        let memory = gateway.memory().unwrap();
        let cpu = gateway.cpu_seconds().unwrap() - cpu;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "{attack}: healthy p99 {:.1} ms of {} calls, baseline {:.1} ms of {}; {:.1} s of CPU in {:.1} s; {:.1} MiB, at most {:.1}, before {:.1}",
            ms(p99(after)),
            after.len(),
            ms(p99(&self.baseline)),
            self.baseline.len(),
            cpu,
            began.elapsed().as_secs_f64(),
            mib(memory.now),
            mib(memory.peak),
            mib(before.now),
        );
        assert!(!after.is_empty(), "the healthy client made no call during the attack");
        let grown = memory.peak.saturating_sub(before.now);
        assert!(grown <= memory_mib << 20, "{attack}: memory grew by {:.1} MiB", mib(grown));
        let log = gateway.log_text();
        assert!(!log.contains("panicked"), "{attack}: {}", gateway.log_tail());
        // A stranger does not fill the disk with our words.
        assert!(log.len() < 256 << 10, "{attack}: {} bytes of log: {}", log.len(), gateway.log_tail());
        self.site.stop_gateway().await.unwrap();
    }
}

/// A gateway alone, with its keys from a file.
pub(crate) async fn site(lines: Lines<'_>) -> Site {
    let mut site = idle_site(lines).await;
    site.start_gateway().await.unwrap();
    site
}

/// The same, not running yet.
pub(crate) async fn idle_site(lines: Lines<'_>) -> Site {
    let lines = lines.iter().map(|line| ("ingest.limits", (*line).to_owned())).collect();
    Site::create(SiteOptions { keys: KeySource::Bundle, gateway_lines: lines, ..SiteOptions::default() })
        .await
        .unwrap()
}

fn p99(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().saturating_sub(1) * 99 / 100).copied().unwrap_or_default()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// A client that hands in one envelope after the other, and fails loudly if one is not taken.
struct Healthy {
    over: Arc<AtomicBool>,
    times: Arc<std::sync::Mutex<Vec<Duration>>>,
    working: JoinHandle<()>,
}

impl Healthy {
    async fn start(site: &Site, reconnects: bool) -> Self {
        let forge = Forge::new(&site.authority).unwrap();
        let identity = site.identity_of("healthy").unwrap();
        let (to, ca) = (site.gateway_address(), site.ca.path().to_owned());
        let (over, times) = (Arc::<AtomicBool>::default(), Arc::<std::sync::Mutex<Vec<Duration>>>::default());
        let working = {
            let (over, times) = (over.clone(), times.clone());
            let mut line = forge.line(Claim { site: SITE, device: "healthy", run: 1, seq: 1 }).unwrap();
            let mut client = Client::connect(to, &ca, Some(&identity)).await.unwrap().unwrap();
            tokio::spawn(async move {
                let mut pace = tokio::time::interval(PACE);
                pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                let mut number = 0;
                while !over.load(Ordering::Relaxed) {
                    pace.tick().await;
                    number += 1;
                    let envelope = line.seal(number, b"all is well").unwrap();
                    let began = Instant::now();
                    if reconnects && number % RECONNECT == 0 {
                        client =
                            Client::connect(to, &ca, Some(&identity)).await.unwrap().expect("it is let in");
                    }
                    client.submit(envelope).await.expect("a healthy call is answered");
                    times.lock().unwrap().push(began.elapsed());
                }
            })
        };
        Self { over, times, working }
    }

    fn so_far(&self) -> Vec<Duration> {
        assert!(!self.working.is_finished(), "the healthy client has failed");
        self.times.lock().unwrap().clone()
    }

    async fn finish(&mut self) -> Vec<Duration> {
        self.over.store(true, Ordering::Relaxed);
        (&mut self.working).await.expect("every healthy call was answered");
        self.times.lock().unwrap().clone()
    }
}
