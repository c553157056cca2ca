//! The refused area of gateways that share the lanes, each with a folder of its own, over a broker that loses requests and replies.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pithead_spool::{Lane, Position};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::super::model::Model;
use super::super::tests::{LONG, append, gateway, model, owns, read_all};
use super::super::{Replicated, Standing};
use super::*;
use crate::envelopes::record;
use crate::envelopes::refused::{self, Refused, RefusedError};
use crate::envelopes::testing::{identity, shares};
use crate::metrics::Metrics;

/// Of an envelope that is a few words.
fn poison(seq: u64) -> (record::Head, Bytes) {
    let bytes = Bytes::from(format!("poison {seq}"));
    let (identity, sha256) = (identity("truck.42", seq), Sha256::digest(&bytes).into());
    (record::Head { identity, sha256, hops: vec![], copy: None }, bytes)
}

fn name(seq: u64) -> String {
    format!("truck.42~can~0000000000000007~{seq}~{}", hex::encode(&poison(seq).0.sha256[..8]))
}

fn seq_of(name: &str) -> u64 {
    name.split('~').nth(3).unwrap().parse().unwrap()
}

/// An area of one machine, as there is under the embedded engine.
fn alone(folder: &Path) -> Refused {
    Refused::open(folder, 1 << 20, Metrics::new(), shares()).unwrap()
}

fn keep(area: &Refused, seq: u64) -> Result<(), RefusedError> {
    let (head, bytes) = poison(seq);
    area.keep(&head, false, &bytes, None, "never", 5)
}

/// What lies in a folder, by number.
fn listed(folder: &Path) -> BTreeSet<u64> {
    refused::list(folder).unwrap().entries.iter().map(|(name, _)| seq_of(name)).collect()
}

/// What lies in the stream, by number.
fn kept(model: &Model) -> BTreeSet<u64> {
    model.area().keys().filter(|name| *name != OWNER).map(|name| seq_of(name)).collect()
}

/// A gateway with its folder.
struct Machine {
    log: Replicated,
    area: Arc<Refused>,
    folder: PathBuf,
}

impl Machine {
    fn start(broker: &Arc<dyn Broker>, name: &str, folder: &Path) -> Self {
        let log = gateway(broker, name);
        let folder = folder.join("refused");
        let area = Arc::new(alone(&folder).with_replica(Some(log.replica())).unwrap());
        Self { log, area, folder }
    }

    /// Starts it, and waits until it owns the lanes and has its folder in line.
    async fn owner(broker: &Arc<dyn Broker>, name: &str, folder: &Path) -> Self {
        let this = Self::start(broker, name, folder);
        owns(&this.log).await;
        this.at_work(|area| area.bring_in_line()).await.unwrap();
        this
    }

    /// Where blocking is no harm.
    async fn at_work<T: Send + 'static>(&self, work: impl FnOnce(Arc<Refused>) -> T + Send + 'static) -> T {
        let area = self.area.clone();
        tokio::task::spawn_blocking(move || work(area)).await.unwrap()
    }

    async fn keep(&self, seq: u64) -> Result<(), RefusedError> {
        self.at_work(move |area| keep(&area, seq)).await
    }

    async fn let_go(&self, seq: u64) {
        self.at_work(move |area| area.take_out(&name(seq)).unwrap().let_go()).await.unwrap();
    }

    async fn bring_in_line(&self) {
        self.at_work(|area| area.bring_in_line()).await.unwrap();
    }

    fn listed(&self) -> BTreeSet<u64> {
        listed(&self.folder)
    }

    /// As a machine that is lost with its disk.
    fn lose(self) {
        self.log.kill();
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// Has one of two become the owner, in another term than before.
async fn hand_over(from: &Machine, to: &Machine) {
    let handing = async {
        loop {
            for machine in [from, to] {
                let now = machine.log.standing().borrow().clone();
                if let Standing::Ours { epoch } = now {
                    if std::ptr::eq(machine, to) {
                        to.log.serve(epoch);
                        return;
                    }
                    machine.log.step_down(epoch);
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, handing).await.expect("it never becomes the owner");
    // As the gateway does it when its term is over.
    from.at_work(|area| area.stand_by()).await.unwrap();
}

fn folders() -> [TempDir; 2] {
    [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]
}

#[test]
fn the_bytes_of_an_entry_are_fixed_and_read_back() {
    let by = By { epoch: 7, writer: 0xc0_ffee };
    let folder = tempfile::tempdir().unwrap();
    keep(&alone(folder.path()), 1).unwrap();
    let (_, entry) = refused::list(folder.path()).unwrap().entries.remove(0);
    let bytes = encode(by, 3, &entry, b"two\nlines");
    let expected = concat!(
        r#"{"v":1,"epoch":7,"writer":"0000000000c0ffee","number":3,"entry":{"site":"pit-7","device":"truck.42","stream":"can","#,
        r#""run":"0000000000000007","seq":1,"sha256":"#,
    );
    assert_eq!(std::str::from_utf8(&bytes[..expected.len()]).unwrap(), expected);
    assert!(bytes.ends_with(b"\"conflict\":false,\"large\":false}}\ntwo\nlines"), "{bytes:?}");
    let (read_by, number, kept) = decode(&bytes).unwrap();
    assert_eq!((read_by, number, kept.entry, &kept.envelope[..]), (by, 3, entry, &b"two\nlines"[..]));
    let fence = cell::encode(by, Fence { area: 0x5eed });
    assert_eq!(fence, r#"{"v":1,"epoch":7,"writer":"0000000000c0ffee","area":"0000000000005eed"}"#);
    assert!(decode(&fence).is_err(), "a fence is no entry");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_outlives_its_machine_and_leaves_folder_and_replica_when_it_is_let_go() {
    let ((model, broker), [first, second]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    one.keep(1).await.unwrap();
    one.keep(2).await.unwrap();
    one.keep(2).await.unwrap();
    assert_eq!((one.listed(), kept(&model), one.area.held().records), ([1, 2].into(), [1, 2].into(), 2));
    one.lose();
    let two = Machine::owner(&broker, "edge-2", second.path()).await;
    assert_eq!((two.listed(), two.area.held().records), ([1, 2].into(), 2));
    let taken = two.at_work(|area| area.take_out(&name(1))).await.unwrap();
    assert_eq!(
        (&taken.head, &taken.envelope),
        (&poison(1).0, &poison(1).1),
        "with its custody and its bytes"
    );
    two.at_work(move |_| taken.let_go()).await.unwrap();
    assert_eq!((two.listed(), kept(&model), two.area.held().records), ([2].into(), [2].into(), 1));
    // Nothing comes back at the next one.
    two.log.close();
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    assert_eq!(one.listed(), [2].into());
    one.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_owner_has_let_go_leaves_the_folder_and_what_was_never_in_the_replica_is_put_there() {
    let ((model, broker), [first, second]) = (model(), folders());
    // From before there was a replica.
    let before = first.path().join("refused");
    fs::create_dir(&before).unwrap();
    for seq in [1, 8, 9] {
        keep(&alone(&before), seq).unwrap();
    }
    // What is damaged there stays where it is, and keeps nothing else from it.
    fs::write(before.join(format!("{}.envelope", name(8))), b"changed").unwrap();
    fs::remove_file(before.join(format!("{}.envelope", name(9)))).unwrap();
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    assert_eq!(kept(&model), [1].into());
    one.keep(2).await.unwrap();
    one.log.close();
    let two = Machine::owner(&broker, "edge-2", second.path()).await;
    assert_eq!(two.listed(), [1, 2].into());
    two.let_go(1).await;
    two.keep(3).await.unwrap();
    two.log.close();
    assert_eq!(listed(&one.folder), [1, 2, 8, 9].into(), "as of its last term");
    // And from a time with the embedded engine in between.
    keep(&alone(&one.folder), 4).unwrap();
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    assert_eq!((one.listed(), kept(&model)), ([2, 3, 4, 8, 9].into(), [2, 3, 4].into()));
    one.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_made_anew_gets_what_the_folder_has_and_takes_nothing_away() {
    let ((model, broker), [first, _]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    one.keep(1).await.unwrap();
    one.log.close();
    model.lose_area();
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    assert_eq!((one.listed(), kept(&model)), ([1].into(), [1].into()));
    one.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_let_go_late_by_a_former_owner_is_not_what_was_refused_again_since() {
    let ((model, broker), [first, second]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    one.keep(1).await.unwrap();
    one.keep(2).await.unwrap();
    // Both are durable in the lane again, and then the term is over before they are let go.
    let first_out = one.at_work(|area| area.take_out(&name(1))).await.unwrap();
    let second_out = one.at_work(|area| area.take_out(&name(2))).await.unwrap();
    let two = Machine::start(&broker, "edge-2", second.path());
    hand_over(&one, &two).await;
    two.bring_in_line().await;
    // The next owner has met one of them in the lane, and it was refused again: it is not in the lane any more. The other it has let go.
    two.keep(1).await.unwrap();
    two.let_go(2).await;
    hand_over(&two, &one).await;
    one.bring_in_line().await;
    one.at_work(move |_| first_out.let_go()).await.unwrap();
    one.at_work(move |_| second_out.let_go()).await.unwrap();
    assert_eq!((one.listed(), kept(&model)), ([1].into(), [1].into()));
    // A removal that was held up on its way says which message it means.
    let of_two = model.area()[&name(1)].0;
    one.keep(1).await.unwrap();
    assert_eq!(broker.let_go(of_two).await, Ok(false));
    assert_eq!(kept(&model), [1].into());
    one.log.close();
    two.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_former_owner_has_asked_for_is_not_done_once_another_one_has_begun() {
    let ((model, broker), [first, second]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    one.keep(1).await.unwrap();
    let newest = broker.kept_state().await.unwrap().last;
    let two = Machine::start(&broker, "edge-2", second.path());
    hand_over(&one, &two).await;
    two.bring_in_line().await;
    let late = broker.keep(&name(2), newest, Bytes::from_static(b"late")).await;
    assert_eq!((late, kept(&model)), (Err(Fault::Mismatch), [1].into()));
    assert!(matches!(one.keep(3).await, Err(RefusedError::Replica(ReplicaError::NotOurs))));
    assert_eq!((one.listed(), kept(&model)), ([1].into(), [1].into()));
    one.log.close();
    two.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_finds_anothers_message_where_its_own_belongs_steps_down() {
    let ((_, broker), [first, _]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    let newest = broker.kept_state().await.unwrap().last;
    broker.keep(OWNER, newest, Bytes::from_static(b"another's")).await.unwrap();
    let refused = one.keep(1).await;
    assert!(matches!(refused, Err(RefusedError::Replica(ReplicaError::NotOurs))), "{refused:?}");
    assert!(!one.log.is_owner() && one.listed().is_empty());
    one.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_answer_nobody_waited_for_does_not_stop_the_next_one() {
    let ((model, broker), [first, _]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    let by = one.log.0.lock().term.as_ref().unwrap().by;
    let newest = broker.kept_state().await.unwrap().last;
    let folder = tempfile::tempdir().unwrap();
    keep(&alone(folder.path()), 1).unwrap();
    let (_, entry) = refused::list(folder.path()).unwrap().entries.remove(0);
    // As a request that was given up, and was done after that.
    broker.keep(&name(1), newest, encode(by, 1_000, &entry, &poison(1).1)).await.unwrap();
    one.keep(2).await.unwrap();
    assert!(one.log.is_owner());
    assert_eq!((one.listed(), kept(&model)), ([2].into(), [1, 2].into()));
    // It shows when the folder is brought in line the next time.
    one.log.close();
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    assert_eq!(one.listed(), [1, 2].into());
    one.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_carries_away_goes_from_the_replica_and_a_folder_that_is_gone_comes_back() {
    let ((model, broker), [first, _]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    for seq in 1..=3 {
        one.keep(seq).await.unwrap();
    }
    for ending in ["json", "envelope"] {
        fs::remove_file(one.folder.join(format!("{}.{ending}", name(1)))).unwrap();
    }
    one.at_work(|area| area.look_after()).await;
    assert_eq!((one.listed(), kept(&model), one.area.held().records), ([2, 3].into(), [2, 3].into(), 2));
    // A disk that was lost, or a mount that fell off and left an empty place.
    fs::remove_dir_all(&one.folder).unwrap();
    fs::create_dir(&one.folder).unwrap();
    one.at_work(|area| area.look_after()).await;
    assert_eq!((one.listed(), kept(&model), one.area.held().records), ([2, 3].into(), [2, 3].into(), 2));
    fs::remove_dir_all(&one.folder).unwrap();
    one.at_work(|area| area.recount().map(|held| held.records)).await.unwrap();
    assert_eq!((one.listed(), kept(&model)), ([2, 3].into(), [2, 3].into()));
    // Everything that `*` names.
    for file in fs::read_dir(&one.folder).unwrap().map(|file| file.unwrap().path()) {
        if !file.file_name().unwrap().to_str().unwrap().starts_with('.') {
            fs::remove_file(file).unwrap();
        }
    }
    one.at_work(|area| area.look_after()).await;
    assert_eq!((one.listed(), kept(&model), one.area.held().records), ([].into(), [].into(), 0));
    one.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_takes_nothing_and_leaves_room_for_whoever_takes_over() {
    let ((model, broker), [first, second]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    one.keep(1).await.unwrap();
    model.area_holds(Some(RESERVE + 500));
    let full = one.keep(2).await.unwrap_err();
    assert!(full.is_full() && full.to_string().contains("the stream of the refused area is full"), "{full}");
    assert_eq!((one.listed(), kept(&model)), ([1].into(), [1].into()));
    one.log.close();
    let two = Machine::owner(&broker, "edge-2", second.path()).await;
    assert_eq!(two.listed(), [1].into());
    model.area_holds(None);
    two.keep(2).await.unwrap();
    two.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_a_leader_that_is_behind_is_not_taken_for_the_whole() {
    let ((model, broker), [first, second]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    for seq in 1..=4 {
        one.keep(seq).await.unwrap();
    }
    one.log.close();
    let two = Machine::start(&broker, "edge-2", second.path());
    owns(&two.log).await;
    model.area_behind(3);
    let area = two.area.clone();
    let bringing = tokio::task::spawn_blocking(move || area.bring_in_line());
    // As far as that leader leads.
    let began = async {
        while listed(&second.path().join("refused")).len() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, began).await.unwrap();
    model.area_behind(0);
    bringing.await.unwrap().unwrap();
    assert_eq!(two.listed(), [1, 2, 3, 4].into());
    two.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stands_by_counts_what_lies_on_its_machine_alone() {
    let ((_, broker), [first, second]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    one.keep(1).await.unwrap();
    let two = Machine::start(&broker, "edge-2", second.path());
    hand_over(&one, &two).await;
    two.bring_in_line().await;
    assert_eq!((one.listed(), one.area.held().records, two.area.held().records), ([1].into(), 0, 1));
    keep(&alone(&one.folder), 2).unwrap();
    let held = one.at_work(|area| area.recount()).await.unwrap();
    assert_eq!((held.records, held.bytes), (1, poison(2).1.len() as u64));
    assert!(one.at_work(|area| area.take_out(&name(1)).map(drop)).await.is_err(), "it is not its own");
    one.log.close();
    two.log.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_else_has_put_there_is_not_written_and_stays() {
    let ((model, broker), [first, second]) = (model(), folders());
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    one.keep(1).await.unwrap();
    one.log.close();
    let (_, entry) = refused::list(&one.folder).unwrap().entries.remove(0);
    let by = By { epoch: 1, writer: 1 };
    let newest = async || broker.kept_state().await.unwrap().last;
    for (name, bytes) in [
        ("../outside".to_owned(), encode(by, 0, &entry, &poison(1).1)),
        // Of another one's name, with other bytes, and nothing that reads at all.
        (name(2), encode(by, 0, &entry, &poison(1).1)),
        (name(1), encode(by, 0, &entry, b"other bytes")),
        (name(3), Bytes::from_static(b"{")),
    ] {
        broker.keep(&name, newest().await, bytes).await.unwrap();
    }
    let two = Machine::owner(&broker, "edge-2", second.path()).await;
    assert!(two.listed().is_empty() && !second.path().join("outside.json").exists());
    two.at_work(|area| area.look_after()).await;
    assert_eq!(model.area().len(), 5, "nothing of it is removed");
    two.log.close();
    // Where the good one lies it is left alone.
    let one = Machine::owner(&broker, "edge-1", first.path()).await;
    assert_eq!(one.listed(), [1].into());
    one.log.close();
}

/// The lanes, the area and what becomes of an envelope, for a life of two machines.
struct World {
    model: Model,
    broker: Arc<dyn Broker>,
    folders: [TempDir; 2],
    machines: Vec<Machine>,
    random: u64,
    asked: u64,
    /// Acknowledged to a device.
    promised: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
    carried_away: BTreeSet<u64>,
    met: Met,
}

/// What a life has met: one that meets nothing proves nothing.
#[derive(Debug, Default)]
struct Met {
    refused: u64,
    let_go: u64,
    lost_machines: u64,
    taken_over: u64,
}

impl World {
    fn begin(seed: u64) -> Self {
        let ((model, broker), folders) = (model(), folders());
        let machines = [0, 1].map(|at: usize| Machine::start(&broker, NAMES[at], folders[at].path())).into();
        Self {
            model,
            broker,
            folders,
            machines,
            random: seed,
            asked: 0,
            promised: BTreeSet::new(),
            delivered: BTreeSet::new(),
            carried_away: BTreeSet::new(),
            met: Met::default(),
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % bound
    }

    /// Whoever owns the lanes, when somebody does.
    async fn owner(&self) -> usize {
        let taking = async {
            loop {
                for (at, machine) in self.machines.iter().enumerate() {
                    let now = machine.log.standing().borrow().clone();
                    match now {
                        Standing::Ours { epoch } => {
                            machine.log.serve(epoch);
                            if machine.log.is_owner() {
                                return at;
                            }
                        }
                        Standing::StandingBy { .. } => machine.at_work(|area| area.stand_by()).await.unwrap(),
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(LONG, taking).await.expect("nobody becomes the owner")
    }

    /// Puts an envelope into the lane. Whether it is durable there.
    async fn append(&self, at: usize, seq: u64) -> bool {
        let Ok(ticket) = append(&self.machines[at].log, Lane::Second, &seq.to_string()) else { return false };
        tokio::time::timeout(LONG, ticket).await.expect("never answered").is_ok()
    }

    /// Devices bring some.
    async fn take(&mut self, at: usize) {
        for _ in 0..self.below(6) {
            self.asked += 1;
            if self.append(at, self.asked).await {
                self.promised.insert(self.asked);
            }
        }
    }

    /// What the relay does: each is delivered, or refused and set aside, before the cursor moves behind it.
    async fn relay(&mut self, at: usize) {
        let log = self.machines[at].log.clone();
        let mut reader = log.reader(Lane::Second, log.cursor(Lane::Second));
        // As far as the broker gives it.
        let found = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            while let Ok(batch) = reader.next_batch(1 << 10)
                && !batch.is_empty()
            {
                found.extend(batch.records);
            }
            found
        });
        for (Position(position), record) in found.await.unwrap() {
            let seq = std::str::from_utf8(&record.body).unwrap().parse().unwrap();
            if self.below(2) == 0 {
                if self.machines[at].keep(seq).await.is_err() {
                    return;
                }
                self.met.refused += 1;
            } else {
                self.delivered.insert(seq);
            }
            if log.acknowledge(Lane::Second, Position(position)).is_err() {
                return;
            }
        }
    }

    /// What a person orders: back into the lane, and out of the area.
    async fn retry(&mut self, at: usize) {
        for seq in self.machines[at].listed() {
            if self.below(2) == 0 {
                continue;
            }
            let Ok(taken) = self.machines[at].at_work(move |area| area.take_out(&name(seq))).await else {
                return;
            };
            if self.append(at, seq).await {
                // In between, the relay may meet it and have it refused again; or the term be over.
                if self.below(3) == 0 {
                    self.relay(at).await;
                }
                let gone = self.machines[at].at_work(move |_| taken.let_go()).await;
                self.met.let_go += u64::from(gone.is_ok());
            }
        }
    }

    async fn carry_away(&mut self, at: usize) {
        let listed = self.machines[at].listed();
        let Some(seq) = listed.into_iter().next() else { return };
        for ending in ["json", "envelope"] {
            let _ = fs::remove_file(self.machines[at].folder.join(format!("{}.{ending}", name(seq))));
        }
        self.machines[at].at_work(|area| area.look_after()).await;
        self.carried_away.insert(seq);
    }

    /// As a process that is killed, with its disk or without.
    fn kill(&mut self, at: usize) {
        let log = self.machines[at].log.clone();
        log.kill();
        if self.below(2) == 0 {
            let _ = fs::remove_dir_all(self.folders[at].path().join("refused"));
            self.met.lost_machines += 1;
        }
        self.machines[at] = Machine::start(&self.broker, NAMES[at], self.folders[at].path());
    }

    async fn round(&mut self, losses: u64) {
        let seed = self.below(1 << 30);
        self.model.loses(losses, losses, seed);
        let at = self.owner().await;
        self.take(at).await;
        match self.below(6) {
            // In the middle of it.
            0 => {
                let (log, after) = (self.machines[at].log.clone(), Duration::from_millis(self.below(30)));
                let killing = tokio::task::spawn_blocking(move || {
                    std::thread::sleep(after);
                    log.kill();
                });
                self.relay(at).await;
                self.retry(at).await;
                killing.await.unwrap();
                self.kill(at);
            }
            1 => {
                let (model, after) = (self.model.clone(), Duration::from_millis(self.below(20)));
                let length = Duration::from_millis(self.below(400));
                let cutting = tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    model.away(true);
                    tokio::time::sleep(length).await;
                    model.away(false);
                });
                self.relay(at).await;
                self.retry(at).await;
                cutting.await.unwrap();
            }
            2 => {
                let now = self.machines[at].log.standing().borrow().clone();
                if let Standing::Ours { epoch } = now {
                    self.machines[at].log.step_down(epoch);
                }
                self.met.taken_over += 1;
            }
            3 => self.carry_away(at).await,
            _ => {}
        }
        let at = self.owner().await;
        self.relay(at).await;
        self.retry(at).await;
        if self.below(4) == 0 {
            self.kill(at);
        }
    }

    /// All is well again: what is where, with whoever owns the lanes.
    async fn end(mut self, seed: u64) -> Met {
        self.model.loses(0, 0, 0);
        let gone = self.below(2) as usize;
        self.machines.remove(gone).log.close();
        let last = &self.machines[0];
        self.owner().await;
        last.bring_in_line().await;
        let (waits, lost) = read_all(&last.log, Lane::Second, last.log.cursor(Lane::Second)).await;
        assert_eq!(lost, 0);
        let waits: BTreeSet<u64> = waits.iter().map(|(_, text)| text.parse().unwrap()).collect();
        // A removal that was held up may still come, of what is durable in the lane.
        let (aside, listed) = (kept(&self.model), last.listed());
        assert!(
            aside.is_subset(&listed),
            "the folder has what the replica has: {aside:?} {listed:?}, seed {seed}"
        );
        for seq in &aside {
            assert_eq!(
                fs::read(last.folder.join(format!("{}.envelope", name(*seq)))).unwrap(),
                poison(*seq).1
            );
        }
        for seq in &self.promised {
            let somewhere = [&self.delivered, &self.carried_away, &waits, &aside];
            assert!(somewhere.iter().any(|place| place.contains(seq)), "{seq} is nowhere, seed {seed}");
        }
        // And all of it can be let go: then it is nowhere, neither here nor there.
        for seq in listed {
            last.let_go(seq).await;
        }
        assert_eq!((last.listed(), kept(&self.model)), Default::default(), "seed {seed}");
        last.log.close();
        self.met
    }
}

#[tokio::test]
async fn an_area_of_a_later_term_than_the_owners_record_is_taken_over_all_the_same() {
    let (model, broker) = model();
    let by = By { epoch: 57, writer: 5 };
    broker.keep(OWNER, 0, cell::encode(by, Fence { area: 7 })).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let machine = Machine::start(&broker, "edge-1", folder.path());
    // One term finds out, and the next one is later than what it found.
    let in_line = async {
        while machine.at_work(|area| area.bring_in_line()).await.is_err() {
            owns(&machine.log).await;
        }
    };
    tokio::time::timeout(LONG, in_line).await.expect("it is taken over");
    assert_eq!(*machine.log.standing().borrow(), Standing::Ours { epoch: 58 });
    machine.keep(1).await.unwrap();
    assert_eq!(kept(&model), [1].into());
    machine.log.close();
}

const NAMES: [&str; 2] = ["edge-1", "edge-2"];

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_and_not_let_go_is_with_whoever_owns_the_lanes_whatever_is_lost() {
    let long = std::env::var_os("PITHEAD_LONG").is_some_and(|value| value == "1");
    let mut met = Met::default();
    for batch in 0..if long { 40 } else { 1 } {
        let mut lives = tokio::task::JoinSet::new();
        for seed in batch * 8..batch * 8 + 8 {
            lives.spawn(async move {
                let mut world = World::begin(seed);
                for _ in 0..8 {
                    world.round(10).await;
                }
                world.end(seed).await
            });
        }
        while let Some(life) = lives.join_next().await {
            let Met { refused, let_go, lost_machines, taken_over } = life.unwrap();
            met.refused += refused;
            met.let_go += let_go;
            met.lost_machines += lost_machines;
            met.taken_over += taken_over;
        }
    }
    println!("{met:?}");
    assert!(met.refused > 50 && met.let_go > 20 && met.lost_machines > 5 && met.taken_over > 3, "{met:?}");
}
