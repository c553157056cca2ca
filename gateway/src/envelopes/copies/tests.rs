//! Gateways of a site over one broker in memory and one folder for copies, each with a disk of its own, which may be lost.
#![expect(clippy::disallowed_methods, reason = "as a mount that falls off, and comes back")]

use std::path::{Path, PathBuf};

use pithead_hop::ingest::Answer;
use pithead_hop::ingest::SendError;
use pithead_hop::ingest::send::UploadError;
use pithead_proto::errors::v1::ErrorReason;
use pithead_spool::{AppendError, Position};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::super::lanes::{Lanes, USUAL};
use super::super::record::Body;
use super::super::refused::Refused;
use super::super::relay::control::Control;
use super::super::relay::{Relay, RelayReport};
use super::super::replicated::model::{At, Model};
use super::super::replicated::{Replicated, Standing};
use super::super::retry::Retry;
use super::super::spool::EnvelopeSpool;
use super::super::testing::{Cloud, Door, Truck, shares, until};
use super::super::uploads;
use super::*;
use crate::health::Health;

/// Some hundred KiB are enough to go by an upload.
fn large(truck: &mut Truck, seq: u64) -> Bytes {
    truck.seal(seq, &vec![seq as u8; 700_000])
}

struct Site {
    broker: Model,
    shared: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        Self { broker: Model::default(), shared: tempfile::tempdir().unwrap() }
    }

    fn store(&self) -> PathBuf {
        self.shared.path().join("large-store")
    }

    /// What lies in the store, the mark left out.
    fn objects(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.store()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => folders.push(path),
                    false if path.ends_with("test/store") => {}
                    false => found.push(path),
                }
            }
        }
        found.sort();
        found
    }

    /// The one copy that there is.
    fn object(&self) -> PathBuf {
        let [object] = self.objects().try_into().expect("one copy");
        object
    }
}

/// A gateway that owns the lanes.
struct Owner {
    door: Door,
    log: Replicated,
    epoch: u64,
    refused: Arc<Refused>,
    folder: PathBuf,
}

impl Owner {
    async fn on(site: &Site, name: &str, folder: &Path) -> Self {
        let log = Replicated::over_model(&site.broker, name, "127.0.0.1:1".to_owned());
        let spool = EnvelopeSpool::over_replicated(log.clone(), Lanes::default());
        let door = Door::over(folder, site.shared.path(), spool, name, 1 << 20, shares(), Arc::default());
        let area = Refused::open(&folder.join("refused"), 1 << 20, door.metrics.clone(), shares());
        let (refused, folder) = (Arc::new(area.unwrap()), folder.to_owned());
        let mut this = Self { door, log, epoch: 0, refused, folder };
        this.begin().await;
        this
    }

    /// As `run::owning` does it.
    async fn begin(&mut self) {
        let mut standing = self.door.spool.standing().unwrap();
        let before = self.epoch;
        let is_new = |now: &Standing| matches!(now, Standing::Ours { epoch } if *epoch > before);
        let ours = standing.wait_for(is_new).await.unwrap().clone();
        let Standing::Ours { epoch } = ours else { panic!("{ours:?}") };
        let (door, refused) = (&self.door, &self.refused);
        tokio::task::block_in_place(|| {
            uploads::stand_down(&door.uploads, refused);
            door.begin(epoch);
            uploads::claim(&door.uploads, &door.numbers, refused, true).unwrap();
        });
        assert!(self.door.spool.serve(epoch));
        self.epoch = epoch;
    }

    fn copies(&self) -> &Copies {
        self.door.copies.as_ref().unwrap()
    }

    /// The head of what waits first.
    fn head(&self) -> Head {
        tokio::task::block_in_place(|| Head::decode(&self.door.spool.waiting().next().unwrap().head).unwrap())
    }

    async fn bring(&self, head: &Head) -> Result<(), CopyError> {
        self.copies().bring(head, head.copy.as_ref().unwrap()).await
    }

    async fn tidy(&self) -> u64 {
        self.copies().tidy(&self.refused).await.unwrap()
    }

    fn relay(&self, cloud: &Cloud) -> Relaying {
        let (door, metrics) = (&self.door, self.door.metrics.clone());
        let relay = Relay {
            spool: door.spool.clone(),
            numbers: door.numbers.clone(),
            uploads: door.uploads.clone(),
            copies: door.copies.clone(),
            refused: self.refused.clone(),
            health: Health::new(metrics.clone(), Duration::ZERO),
            metrics,
            report: RelayReport::default(),
            control: Control::open(self.folder.join("relay"), None).unwrap(),
            followed: door.followed.clone(),
        };
        let (stop, targets) = (CancellationToken::new(), watch::Sender::new(cloud.target()).subscribe());
        let keeping = tokio::spawn(self.copies().clone().keep(self.refused.clone(), stop.clone()));
        Relaying { task: tokio::spawn(relay.run(targets, stop.clone())), keeping, stop }
    }

    fn metric(&self, line: &str) -> bool {
        self.door.metrics.page().lines().any(|one| one == line)
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.folder.join("uploads")).unwrap().count()
    }

    /// As a machine that is lost.
    fn lose(self) {
        self.log.kill();
        std::fs::remove_dir_all(&self.folder).unwrap();
    }
}

struct Relaying {
    task: JoinHandle<()>,
    keeping: JoinHandle<()>,
    stop: CancellationToken,
}

impl Relaying {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        self.keeping.await.unwrap();
    }
}

/// For two gateways, one of which is lost with its own.
fn two_disks() -> [tempfile::TempDir; 2] {
    [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]
}

/// What the far end has got of it.
fn got(cloud: &Cloud, identity: &Identity) -> Vec<u8> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    cloud.far_end.uploads.read(identity).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn whose_owner_is_lost_with_its_disk_is_fetched_by_the_next_one_arrives_bit_for_bit_and_its_copy_goes()
{
    let (site, [one, two], cloud) = (Site::new(), two_disks(), Cloud::start().await);
    let first = Owner::on(&site, "edge-1", one.path()).await;
    let envelope = large(&mut Truck::new(), 1);
    assert_eq!(first.door.upload(&envelope).await, Answer::Stored);
    assert_eq!(std::fs::read(site.object()).unwrap(), envelope, "the bare envelope");
    first.lose();

    let second = Owner::on(&site, "edge-2", two.path()).await;
    let (stats, head) = (second.door.uploads.stats(), second.head());
    assert!(second.door.uploads.is_away(&head.identity) && second.files() == 0);
    assert_eq!((stats.taken, stats.bytes), (1, envelope.len() as u64), "it has its place");
    // To its sender it is here.
    assert_eq!(second.door.upload(&envelope).await, Answer::Duplicate { unverified: false });
    let other = large(&mut Truck::new(), 1);
    assert_eq!(second.door.upload(&other).await, Answer::Conflict { kept: false });
    assert!(second.metric("pithead_large_copies 1"));

    let relaying = second.relay(&cloud);
    until("it is delivered, and nothing of it is left", || {
        cloud.far_end.seqs() == [1] && site.objects().is_empty() && second.files() == 0
    })
    .await;
    assert_eq!(got(&cloud, &head.identity), envelope);
    until("it is counted", || second.metric("pithead_large_copies 0")).await;
    for line in
        ["fetched", "removed"].map(|event| format!("pithead_large_copy_events_total{{event=\"{event}\"}} 1"))
    {
        until(&line, || second.metric(&line)).await;
    }
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_nothing_is_acknowledged_and_who_comes_again_need_not_send_it_again() {
    let (site, disk) = (Site::new(), tempfile::tempdir().unwrap());
    let owner = Owner::on(&site, "edge-1", disk.path()).await;
    let mut truck = Truck::new();
    assert_eq!(owner.door.upload(&large(&mut truck, 1)).await, Answer::Stored);
    let (store, aside) = (site.store(), site.shared.path().join("aside"));
    std::fs::rename(&store, &aside).unwrap();
    let envelope = large(&mut truck, 2);
    // Not there, and then there and empty: as a file system that is not mounted.
    for round in 0..2 {
        let refused = owner.door.try_upload(&envelope).await.unwrap_err();
        assert_eq!(refused.reason(), Some(ErrorReason::NotDurable), "{refused}");
        assert!(refused.is_retryable() && refused.retry_after().is_some());
        assert_eq!(owner.door.spool.stats().records, 1);
        assert!(owner.copies().trouble().is_some() && owner.metric("pithead_large_store_up 0"));
        if round == 0 {
            std::fs::create_dir(&store).unwrap();
        }
    }
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 0, "nothing is put where nobody else looks");
    std::fs::remove_dir(&store).unwrap();
    std::fs::rename(&aside, &store).unwrap();
    assert_eq!(owner.door.uploads.stats().open, 1, "it is here, whole");
    assert_eq!(owner.door.upload(&envelope).await, Answer::Stored);
    assert_eq!((owner.door.spool.stats().records, site.objects().len()), (2, 2));
    assert!(owner.copies().trouble().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_not_damage_and_a_copy_that_is_gone_or_changed_is() {
    let (site, [one, two]) = (Site::new(), two_disks());
    let first = Owner::on(&site, "edge-1", one.path()).await;
    let envelope = large(&mut Truck::new(), 1);
    first.door.upload(&envelope).await;
    first.lose();
    let second = Owner::on(&site, "edge-2", two.path()).await;
    let (head, object, store) = (second.head(), site.object(), site.store());
    let aside = site.shared.path().join("aside");

    // Another store stands there, and an empty one.
    std::fs::rename(&store, &aside).unwrap();
    for mark in [None, Some("00000000000000ff\n")] {
        std::fs::create_dir_all(store.join("copies/test")).unwrap();
        if let Some(mark) = mark {
            std::fs::write(store.join("copies/test/store"), mark).unwrap();
        }
        let away = second.bring(&head).await.unwrap_err();
        assert!(matches!(away, CopyError::Another(_)), "{away}");
        std::fs::remove_dir_all(&store).unwrap();
    }
    std::fs::rename(&aside, &store).unwrap();

    // Gone; empty, as a file server that crashed leaves it; cut short; changed. Not at the first look, and for good after a while.
    let cut = &envelope[..envelope.len() - 1];
    let mut changed = envelope.to_vec();
    changed[300_000] ^= 4;
    for bytes in [None, Some(&[][..]), Some(cut), Some(&changed[..])] {
        std::fs::remove_file(&object).unwrap();
        if let Some(bytes) = bytes {
            std::fs::write(&object, bytes).unwrap();
        }
        let doubtful = second.bring(&head).await.unwrap_err();
        assert!(matches!(doubtful, CopyError::Doubtful(_)), "{doubtful}");
        tokio::time::sleep(Duration::from_millis(2)).await;
        let lost = second.bring(&head).await.unwrap_err();
        assert!(matches!(lost, CopyError::Lost(_)), "{lost}");
        assert!(second.door.uploads.is_away(&head.identity));
        // A good one is believed again.
        std::fs::write(&object, &envelope).unwrap();
        second.bring(&head).await.unwrap();
        second.door.uploads.send_away(&head.identity).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_there_frees_its_number_and_what_was_changed_is_kept_for_a_person() {
    let (site, [one, two], cloud) = (Site::new(), two_disks(), Cloud::start().await);
    let first = Owner::on(&site, "edge-1", one.path()).await;
    let mut truck = Truck::new();
    let envelope = large(&mut truck, 1);
    first.door.upload(&envelope).await;
    first.door.take(truck.seal(2, b"behind")).await;
    first.lose();
    let object = site.object();
    let mut changed = envelope.to_vec();
    changed[300_000] ^= 4;
    std::fs::write(&object, changed).unwrap();

    let second = Owner::on(&site, "edge-2", two.path()).await;
    let relaying = second.relay(&cloud);
    until("what is behind it is delivered", || cloud.far_end.seqs() == [2]).await;
    until("it is kept", || site.objects().len() == 2).await;
    // Whatever tidies up, and a good copy goes its way.
    second.tidy().await;
    assert!(object.is_file());
    assert_eq!(second.door.upload(&envelope).await, Answer::Stored);
    until("the good one is there", || cloud.far_end.seqs() == [2, 1]).await;
    until("nothing else is left", || site.objects().len() == 2).await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_record_that_is_lost_may_have_named_is_kept_for_a_person_through_all_later_terms() {
    let (site, disk, cloud) = (Site::new(), tempfile::tempdir().unwrap(), Cloud::start().await);
    let mut owner = Owner::on(&site, "edge-1", disk.path()).await;
    let mut truck = Truck::new();
    owner.door.upload(&large(&mut truck, 1)).await;
    owner.door.take(truck.seal(2, b"behind")).await;
    let object = site.object();
    // The first message is the owner's fence.
    site.broker.set(USUAL, 2, Some(Bytes::from_static(b"damaged")));
    let relaying = owner.relay(&cloud);
    until("what is behind it is delivered", || cloud.far_end.seqs() == [2]).await;
    until("that is written down", || owner.door.spool.saved_cursor(USUAL) > Position(1)).await;
    relaying.stop().await;
    assert_eq!(site.objects().len(), 2, "it is said beside it");
    for _ in 0..2 {
        owner.door.spool.step_down(owner.epoch);
        owner.copies().end();
        owner.begin().await;
        assert_eq!(owner.tidy().await, 0);
        assert!(object.is_file());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_newest_record_names_is_fetched_by_the_next_owner_though_the_leader_cannot_read_that_record()
{
    let (site, [one, two], cloud) = (Site::new(), two_disks(), Cloud::start().await);
    let first = Owner::on(&site, "edge-1", one.path()).await;
    let envelope = large(&mut Truck::new(), 1);
    first.door.upload(&envelope).await;
    first.lose();
    // The first message is the owner's fence.
    site.broker.answer_for(USUAL, 2, [At::CannotRead, At::CannotRead, At::Reads]);
    let second = Owner::on(&site, "edge-2", two.path()).await;
    assert_eq!(second.tidy().await, 0);
    let identity = second.head().identity;
    let relaying = second.relay(&cloud);
    until("it arrives", || cloud.far_end.seqs() == [1]).await;
    assert_eq!(got(&cloud, &identity), envelope);
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_newest_record_may_have_named_is_kept_for_a_person_when_nobody_can_read_that_record() {
    let (site, [one, two], cloud) = (Site::new(), two_disks(), Cloud::start().await);
    let first = Owner::on(&site, "edge-1", one.path()).await;
    let mut truck = Truck::new();
    let envelope = large(&mut truck, 1);
    first.door.upload(&envelope).await;
    let object = site.object();
    first.lose();
    site.broker.answer_for(USUAL, 2, [At::CannotRead; 3]);

    let mut second = Owner::on(&site, "edge-2", two.path()).await;
    assert_eq!(second.tidy().await, 0);
    assert!(object.is_file());
    // What comes now is told from what stood there, and arrives.
    second.door.take(truck.seal(2, b"behind")).await;
    let relaying = second.relay(&cloud);
    until("what is behind it is delivered", || cloud.far_end.seqs() == [2]).await;
    let stats = second.door.spool.stats();
    assert!(stats.corrupt_records > 0, "it is named");
    let end = stats.lanes[USUAL.index()].end;
    until("that is written down", || second.door.spool.saved_cursor(USUAL) == end).await;
    relaying.stop().await;
    assert_eq!(site.objects().len(), 2, "it is said beside it");
    for _ in 0..2 {
        second.door.spool.step_down(second.epoch);
        second.copies().end();
        second.begin().await;
        assert_eq!(second.tidy().await, 0);
        assert!(std::fs::read(&object).unwrap() == envelope);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_names_goes_and_what_waits_is_put_or_was_refused_stays() {
    let (site, disk, cloud) = (Site::new(), tempfile::tempdir().unwrap(), Cloud::start().await);
    let mut owner = Owner::on(&site, "edge-1", disk.path()).await;
    let mut truck = Truck::new();
    // One that the far end will never take, and one that waits.
    cloud.far_end.poison.lock().unwrap().insert(1);
    owner.door.upload(&large(&mut truck, 1)).await;
    let relaying = owner.relay(&cloud);
    until("it is refused", || owner.refused.held().records == 1).await;
    until("that is written down", || owner.door.spool.saved_cursor(USUAL) > Position(0)).await;
    relaying.stop().await;
    owner.door.upload(&large(&mut truck, 2)).await;
    let named = site.objects();
    assert_eq!(named.len(), 2);

    let identity = owner.head().identity;
    let orphans = |epoch: u64| {
        let name = |random| {
            let name = CopyName { set: "test".into(), epoch, identity: identity.clone(), random };
            site.store().join(name.to_string())
        };
        let both = [name(1), PathBuf::from(format!("{}#1", name(2).display()))];
        for path in &both {
            std::fs::write(path, b"orphan").unwrap();
        }
        both
    };
    let [earlier, later] = [orphans(owner.epoch - 1), orphans(owner.epoch + 5)];
    // Of our own term, half written: it is under way.
    let head = owner.head();
    let name =
        CopyName { set: "test".into(), epoch: owner.epoch, identity: head.identity.clone(), random: 7 };
    let under_way =
        owner.copies().begin_put(&name.to_string(), &head.identity, [0; 32], owner.epoch).unwrap();
    let unfinished = site.store().join(format!("{name}#1"));
    std::fs::write(&unfinished, b"half").unwrap();

    assert_eq!(owner.tidy().await, 1);
    let exists = |paths: &[PathBuf]| paths.iter().all(|path| path.is_file());
    assert!(exists(&named) && exists(&later) && exists(std::slice::from_ref(&unfinished)));
    assert!(earlier.iter().all(|path| !path.exists()));
    drop(under_way);
    owner.tidy().await;
    assert!(!unfinished.exists() && exists(&named));

    // A take-over knows the same; and where not all records read, nothing of earlier terms goes.
    owner.door.spool.step_down(owner.epoch);
    owner.copies().end();
    owner.begin().await;
    let [whole, half] = orphans(owner.epoch - 1);
    let epoch = owner.epoch;
    let heads = tokio::task::block_in_place(|| owner.door.numbers.begin().unwrap().heads);
    owner.copies().begin(epoch, Waiting { heads, complete: false });
    assert_eq!(owner.tidy().await, 0);
    assert!(whole.is_file() && half.is_file() && exists(&named));
    let waiting = tokio::task::block_in_place(|| owner.door.numbers.begin().unwrap());
    assert_eq!((waiting.complete, waiting.heads.len()), (true, 1));
    owner.copies().begin(epoch, waiting);
    assert_eq!(owner.tidy().await, 1);
    assert!(!whole.exists() && !half.exists() && exists(&named));

    // Somebody takes the reason away.
    let reason = super::super::refused::list(&disk.path().join("refused")).unwrap().entries[0].0.clone();
    std::fs::remove_file(disk.path().join("refused").join(format!("{reason}.json"))).unwrap();
    assert_eq!(owner.tidy().await, 1);
    assert_eq!(site.objects().len(), 1 + later.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_named_by_a_record_of_its_own_term_or_by_none() {
    let (site, disk) = (Site::new(), tempfile::tempdir().unwrap());
    let mut owner = Owner::on(&site, "edge-1", disk.path()).await;
    owner.door.upload(&large(&mut Truck::new(), 1)).await;
    let head = owner.head();
    let append = |owner: &Owner| {
        let failures = owner.door.spool.failures(&head.identity.line());
        owner.door.spool.append(&head, Body::Large { total: 700_000 }, 0, failures)
    };
    assert!(append(&owner).is_ok());
    owner.door.spool.step_down(owner.epoch);
    owner.copies().end();
    assert!(matches!(owner.copies().term(), Err(CopyError::Over)));
    owner.begin().await;
    // The one that was put, and of which nobody has heard, is an orphan to this term.
    assert!(matches!(append(&owner), Err(AppendError::Overtakes)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_not_taken_finds_the_copy_that_was_put_for_it_again() {
    let (site, disk) = (Site::new(), tempfile::tempdir().unwrap());
    let owner = Owner::on(&site, "edge-1", disk.path()).await;
    owner.door.upload(&large(&mut Truck::new(), 1)).await;
    let head = owner.head();
    let file = || owner.door.uploads.read(&head.identity).unwrap();
    let one = owner.copies().put(file(), &head.identity, head.sha256).await.unwrap();
    let again = owner.copies().put(file(), &head.identity, head.sha256).await.unwrap();
    assert!(one == again && Some(&one) != head.copy.as_ref());
    owner.copies().recorded(&one);
    let another = owner.copies().put(file(), &head.identity, head.sha256).await.unwrap();
    assert_ne!(one, another);
    assert_eq!(site.objects().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_its_disk_has_changed_is_fetched_anew() {
    let (site, disk, cloud) = (Site::new(), tempfile::tempdir().unwrap(), Cloud::start().await);
    let owner = Owner::on(&site, "edge-1", disk.path()).await;
    let envelope = large(&mut Truck::new(), 1);
    owner.door.upload(&envelope).await;
    let head = owner.head();
    let mut files =
        std::fs::read_dir(disk.path().join("uploads")).unwrap().map(|entry| entry.unwrap().path());
    let file = files.find(|path| path.extension().unwrap() == "envelope").unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[300_000] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let relaying = owner.relay(&cloud);
    until("it arrives", || cloud.far_end.seqs() == [1]).await;
    assert_eq!(got(&cloud, &head.identity), envelope);
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_short_loss_of_the_lanes_a_file_is_there_still_and_what_was_passed_on_meanwhile_goes() {
    let (site, disk) = (Site::new(), tempfile::tempdir().unwrap());
    let mut owner = Owner::on(&site, "edge-1", disk.path()).await;
    let mut truck = Truck::new();
    for seq in 1..=2 {
        owner.door.upload(&large(&mut truck, seq)).await;
    }
    let heads = tokio::task::block_in_place(|| {
        owner.door.spool.waiting().map(|record| Head::decode(&record.head).unwrap()).collect::<Vec<_>>()
    });
    let stats = || owner.door.uploads.stats();
    assert_eq!(stats().taken, 2);
    uploads::stand_down(&owner.door.uploads, &owner.refused);
    assert_eq!(
        (stats().taken, stats().open, owner.files()),
        (0, 2, 4),
        "nobody answers for them, and they are here"
    );
    // Another one has passed the first on.
    let first = &heads[0];
    owner.door.numbers.passed_on(first, false, 5);
    tokio::task::block_in_place(|| owner.door.numbers.checkpoint().unwrap());
    owner.door.spool.acknowledge(USUAL, Position(0)).unwrap();
    until("that is written down", || owner.door.spool.saved_cursor(USUAL) > Position(0)).await;
    owner.door.spool.step_down(owner.epoch);
    owner.begin().await;
    let stats = owner.door.uploads.stats();
    assert_eq!((stats.taken, stats.open, owner.files()), (1, 0, 2));
    assert!(!owner.door.uploads.is_away(&heads[1].identity));
    assert!(!owner.door.uploads.is_here(&first.identity));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_elsewhere_is_fetched_when_it_is_sent_again_and_put_anew() {
    let (site, [one, two], cloud) = (Site::new(), two_disks(), Cloud::start().await);
    let first = Owner::on(&site, "edge-1", one.path()).await;
    let envelope = large(&mut Truck::new(), 1);
    cloud.far_end.poison.lock().unwrap().insert(1);
    first.door.upload(&envelope).await;
    let (head, object) = (first.head(), site.object());
    let relaying = first.relay(&cloud);
    until("it is refused", || first.refused.held().records == 1).await;
    until("that is written down", || first.door.spool.saved_cursor(USUAL) > Position(0)).await;
    relaying.stop().await;
    // The area comes along, and the file does not.
    std::fs::create_dir(two.path().join("refused")).unwrap();
    for entry in std::fs::read_dir(one.path().join("refused")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, two.path().join("refused").join(path.file_name().unwrap())).unwrap();
    }
    first.lose();

    let second = Owner::on(&site, "edge-2", two.path()).await;
    assert_eq!(second.tidy().await, 0);
    let name = super::super::refused::list(&two.path().join("refused")).unwrap().entries[0].0.clone();
    let retry = Retry {
        refused: second.refused.clone(),
        numbers: second.door.numbers.clone(),
        spool: second.door.spool.clone(),
        uploads: second.door.uploads.clone(),
        copies: second.door.copies.clone(),
    };
    retry.send_again(&name).await.unwrap();
    let again = second.head();
    assert!(again.identity == head.identity && again.copy != head.copy);
    assert_eq!(second.copies().facts().copies, 1);
    assert_eq!(second.tidy().await, 1, "the one that the entry named");
    assert!(!object.exists() && std::fs::read(site.object()).unwrap() == envelope);
    cloud.far_end.poison.lock().unwrap().clear();
    let relaying = second.relay(&cloud);
    until("it arrives", || cloud.far_end.seqs() == [1]).await;
    relaying.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stands_by_or_has_no_store_takes_no_large_envelope_and_says_which() {
    let (site, disk) = (Site::new(), tempfile::tempdir().unwrap());
    let owner = Owner::on(&site, "edge-1", disk.path()).await;
    let envelope = large(&mut Truck::new(), 1);
    owner.door.spool.step_down(owner.epoch);
    until("it stands by", || owner.door.spool.elsewhere().is_some()).await;
    let refused = owner.door.try_upload(&envelope).await.unwrap_err();
    assert_eq!(refused.reason(), Some(ErrorReason::StandingBy));
    assert!(matches!(refused, UploadError::Send(SendError::Remote(_))));
}
