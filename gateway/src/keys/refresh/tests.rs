//! Refreshing with sources that lie, fail and come back, and with time that is turned by hand.

use std::collections::VecDeque;

use futures_util::future::BoxFuture;
use pithead_sealing::trust::{Bundle, KeyStatus};
use tokio::time::Instant;

use super::*;
use crate::keys::book::Book;
use crate::keys::testing::{AUTHORITY, Authority, arn, site};

/// A source that does what the script says, and then is away.
#[derive(Debug, Default)]
struct Script {
    answers: Mutex<VecDeque<Option<Bundle>>>,
    visits: Mutex<Vec<Instant>>,
    news: Notify,
}

#[derive(Debug, Clone)]
struct Scripted(Arc<Script>);

impl StatementSource for Scripted {
    fn fetch<'a>(&'a self, _held: &'a Held) -> BoxFuture<'a, Result<Option<Bundle>, SourceError>> {
        self.0.visits.lock().unwrap().push(Instant::now());
        let next = self.0.answers.lock().unwrap().pop_front();
        let away =
            || SourceError::Connect(pithead_hop::connect::ConnectError::TimedOut(Duration::from_secs(5)));
        Box::pin(std::future::ready(next.ok_or_else(away)))
    }

    fn changed<'a>(&'a self, _held: &'a Held) -> BoxFuture<'a, ()> {
        Box::pin(self.0.news.notified())
    }
}

struct Bench {
    folder: tempfile::TempDir,
    script: Arc<Script>,
    authority: Authority,
    book: Book,
    health: Health,
}

impl Bench {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            script: Arc::default(),
            authority: Authority::new(),
            book: Book::default(),
            health: Health::new(Metrics::new(), Duration::ZERO),
        }
    }

    fn then(&mut self, keys: &[(u8, KeyStatus)]) {
        let arns: Vec<_> = keys.iter().map(|(number, status)| (arn(*number), *status)).collect();
        let keys: Vec<_> = arns.iter().map(|(arn, status)| (arn, *status)).collect();
        let bundle = self.authority.bundle(&keys);
        self.script.answers.lock().unwrap().push_back(Some(bundle));
    }

    fn refresh(&self) -> Refresh {
        let (history, _) = History::open(&self.folder.path().join("history")).unwrap();
        let history = Arc::new(history);
        let inbox = self.folder.path().join("inbox");
        disk::create_folder(&inbox).unwrap();
        let keeper = Keeper::open(
            self.folder.path(),
            AUTHORITY,
            &site(),
            Authority::new().root,
            history.clone(),
            None,
            self.book.clone(),
        );
        Refresh {
            keeper: keeper.unwrap().0,
            source: Box::new(Scripted(self.script.clone())),
            inbox,
            intervals: Intervals { min: Duration::from_secs(60), max: Duration::from_secs(900) },
            clock: GatewayClock::start(false),
            health: self.health.clone(),
            metrics: Metrics::new(),
            report: SharedReport::default(),
            history,
            poke: Arc::new(Notify::new()),
            next: NextChange::default(),
            spans: Spans::default(),
        }
    }

    fn level(&self) -> Level {
        self.health.report()["keys"].level
    }

    fn visits(&self) -> Vec<Instant> {
        self.script.visits.lock().unwrap().clone()
    }
}

#[tokio::test]
async fn without_a_source_and_without_a_past_it_says_what_is_missing_and_keeps_trying() {
    let mut bench = Bench::new();
    let mut refresh = bench.refresh();
    assert_eq!(refresh.visit().await.unwrap_err().reason(), ErrorReason::PeerUnreachable);
    assert_eq!(bench.level(), Level::Down);
    let words = bench.health.report()["keys"].words.clone();
    assert!(words.contains("no statement was ever accepted") && words.contains("PH-4006"), "{words}");
    bench.then(&[(1, KeyStatus::Active)]);
    refresh.visit().await.unwrap();
    assert_eq!(bench.level(), Level::Ok);
}

#[tokio::test]
async fn a_source_that_is_away_leaves_the_last_good_statement_in_force() {
    let mut bench = Bench::new();
    bench.then(&[(1, KeyStatus::Active)]);
    bench.refresh().visit().await.unwrap();
    // The program starts again, and the source is gone.
    bench.book = Book::default();
    let mut refresh = bench.refresh();
    assert_eq!(bench.book.version().unwrap().sequence, 1);
    refresh.visit().await.unwrap_err();
    assert_eq!(bench.book.version().unwrap().sequence, 1);
    assert_eq!(bench.level(), Level::Ok, "WAN down turns the relay's lamp, and no other");
    assert!(bench.health.report()["keys"].words.contains("its source is away: PH-4006"));
    assert!(refresh.report.get().failure.is_some());
    assert_eq!(refresh.report.get().standing.unwrap().in_use.unwrap().0, arn(1));
}

#[test]
fn a_source_that_is_away_is_trouble_after_a_day_and_a_bundle_that_is_refused_at_once() {
    assert!(is_only_away(ErrorReason::PeerUnreachable, 86_399));
    assert!(!is_only_away(ErrorReason::PeerUnreachable, 86_400));
    for reason in [ErrorReason::TrustThreshold, ErrorReason::TrustRollback, ErrorReason::ConfigUnreadable] {
        assert!(!is_only_away(reason, 0));
    }
}

#[tokio::test]
async fn what_key_import_left_in_the_inbox_is_taken_at_the_next_visit() {
    let mut bench = Bench::new();
    let mut refresh = bench.refresh();
    let bundle = bench.authority.bundle(&[(&arn(1), KeyStatus::Active)]);
    let file = pithead_hop::keys::KeyFile { authority: AUTHORITY.into(), site: site(), bundle };
    let path = refresh.inbox.join("carried.pb");
    disk::replace(&path, &file.encode()).unwrap();
    refresh.visit().await.unwrap_err();
    assert_eq!(bench.book.version().unwrap().sequence, 1);
    assert!(!path.exists());
}

#[tokio::test(start_paused = true)]
async fn visits_keep_between_the_intervals_and_failures_back_off_to_the_longer_one() {
    let mut bench = Bench::new();
    for _ in 0..20 {
        bench.then(&[(1, KeyStatus::Active)]);
    }
    let stop = CancellationToken::new();
    let running = tokio::spawn(bench.refresh().run(stop.clone()));
    tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
    stop.cancel();
    running.await.unwrap();
    let visits = bench.visits();
    assert!(visits.len() > 30, "{}", visits.len());
    let gaps: Vec<Duration> = visits.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for gap in &gaps[..20] {
        assert!(*gap >= Duration::from_secs(60) && *gap <= Duration::from_secs(901), "{gap:?}");
    }
    // After the twentieth answer the source is away: soon again at first, never slower than the longer interval.
    assert!(gaps[20] <= Duration::from_secs(2), "{:?}", gaps[20]);
    assert!(gaps[20..].iter().all(|gap| *gap <= Duration::from_secs(901)), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn news_is_fetched_at_once_but_not_more_than_once_a_second() {
    let mut bench = Bench::new();
    for _ in 0..100 {
        bench.then(&[(1, KeyStatus::Active)]);
    }
    let stop = CancellationToken::new();
    let running = tokio::spawn(bench.refresh().run(stop.clone()));
    let script = bench.script.clone();
    let wolf = tokio::spawn(async move {
        loop {
            script.news.notify_one();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    tokio::time::sleep(Duration::from_secs(20)).await;
    wolf.abort();
    stop.cancel();
    running.await.unwrap();
    let visits = bench.visits();
    // 2,000 times news was told. The first visits are the start's own, and the paused clock moves in steps: a few more than
    // twenty is once a second, a hundred would be none at all.
    assert!((15..=25).contains(&visits.len()), "{}", visits.len());
}
