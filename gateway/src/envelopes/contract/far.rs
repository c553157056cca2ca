//! The far end: hop's lines over a list of what was applied, which is all of it that survives a kill.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use pithead_hop::identity::Peer;
use pithead_hop::ingest::intake::Durability;
use pithead_hop::ingest::lines::LineView;
use pithead_hop::ingest::{
    Admitted, Intake, KnownKeys, Lines, Outcome, Pending, ShortHash, Standing, Unseen, Verdict,
};
use pithead_hop::status::Refusal;
use pithead_proto::errors::v1::ErrorReason;
use pithead_proto::keys::v1::TrustVersion;
use pithead_sealing::trust::KeyArn;
use pithead_sealing::{Identity, Line};
use tokio::sync::oneshot;

use super::letters::Letter;

type Told = oneshot::Receiver<()>;
type Ticket = futures_util::future::Shared<Told>;

#[derive(Default)]
struct Memory {
    lines: Option<Lines<Ticket>>,
    /// Offered, not applied.
    under_way: VecDeque<(Identity, Letter, oneshot::Sender<()>)>,
}

/// A far end. What `applied` and `conflicts` hold is on its disk.
pub(super) struct Far {
    memory: Mutex<Memory>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    holds: bool,
    applied: Vec<(Identity, Letter)>,
    conflicts: Vec<Letter>,
    /// What must not have happened. A panic in a call's own task would only end that call.
    faults: Vec<String>,
}

impl Far {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { memory: Mutex::default(), books: Mutex::default() })
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    pub(super) fn hold(&self, holds: bool) {
        self.books().holds = holds;
    }

    /// Everything that was applied, in order.
    pub(super) fn applied(&self) -> Vec<Letter> {
        self.books().applied.iter().map(|(_, letter)| *letter).collect()
    }

    pub(super) fn keeps(&self, conflict: Letter) -> bool {
        self.books().conflicts.contains(&conflict)
    }

    pub(super) fn faults(&self) -> Vec<String> {
        self.books().faults.clone()
    }

    /// Applies so many of what it holds.
    pub(super) fn apply(&self, count: usize) {
        let mut memory = self.memory.lock().unwrap();
        for _ in 0..count {
            let Some((identity, letter, tell)) = memory.under_way.pop_front() else { return };
            self.enter(&mut memory, identity, letter);
            // Whoever asked may be gone.
            let _ = tell.send(());
        }
    }

    fn enter(&self, memory: &mut Memory, identity: Identity, letter: Letter) {
        let lines = memory.lines.as_mut().unwrap();
        lines.stored(&identity.line(), identity.seq);
        lines.passed_on(&identity.line(), identity.seq);
        self.books().applied.push((identity, letter));
    }

    /// What is only in memory is gone. The wires to it have to be broken by the caller.
    pub(super) fn kill(&self) {
        *self.memory.lock().unwrap() = Memory::default();
    }

    fn lines<'a>(&self, memory: &'a mut Memory) -> &'a mut Lines<Ticket> {
        memory.lines.get_or_insert_with(|| {
            let mut lines = Lines::new(Unseen::Missing);
            for (identity, letter) in &self.books().applied {
                let hash = ShortHash::from(&letter.sha256());
                lines.recall(&identity.line(), identity.seq, hash, Duration::ZERO);
                lines.passed_on(&identity.line(), identity.seq);
            }
            lines
        })
    }

    pub(super) fn view(&self, line: &Line) -> Option<LineView> {
        self.lines(&mut self.memory.lock().unwrap()).view(line)
    }
}

impl KnownKeys for Far {
    fn standing(&self, _: &KeyArn, _: &Identity) -> Standing {
        Standing::Active
    }
}

impl Intake for Far {
    type Call = ();

    fn keys(&self) -> &dyn KnownKeys {
        self
    }

    fn trust(&self, _: &Peer) -> Option<TrustVersion> {
        None
    }

    fn durability(&self) -> Durability {
        Durability::Applied
    }

    fn ready(&self, _: &Peer) -> Result<(), Refusal> {
        Ok(())
    }

    async fn offer(&self, _: &Peer, (): &(), admitted: Admitted) -> Result<Pending, Refusal> {
        let identity = admitted.identity().clone();
        let letter = Letter::find(&identity, &admitted.sha256).expect("bytes that the device sealed");
        let flagged = admitted.hops.iter().any(|hop| hop.conflict);
        let mut memory = self.memory.lock().unwrap();
        let (tell, told) = oneshot::channel();
        let told = told.shared();
        let hash = ShortHash::from(&admitted.sha256);
        let verdict = self
            .lines(&mut memory)
            .offer(&identity.line(), identity.seq, hash, Duration::ZERO, || told.clone())
            .expect("within the bounds");
        let failed = || Refusal::new(ErrorReason::NotReady, "killed").retry_after(Duration::from_millis(1));
        match verdict {
            Verdict::New(_) => {
                if flagged {
                    let fault = format!("{letter:?} came as a conflict before what it conflicts with");
                    self.books().faults.push(fault);
                }
                // What comes behind something that is held waits behind it, also when nothing more is held: a far end applies in
                // the order in which it was offered.
                if self.books().holds || !memory.under_way.is_empty() {
                    memory.under_way.push_back((identity, letter, tell));
                } else {
                    self.enter(&mut memory, identity, letter);
                    let _ = tell.send(());
                }
                Ok(async move { told.await.map(|()| Outcome::Stored).map_err(|_| failed()) }.boxed())
            }
            Verdict::InFlight(first) => Ok(async move {
                first.await.map(|()| Outcome::Duplicate { unverified: false }).map_err(|_| failed())
            }
            .boxed()),
            Verdict::Duplicate { unverified } => {
                Ok(std::future::ready(Ok(Outcome::Duplicate { unverified })).boxed())
            }
            Verdict::Conflict => {
                let mut books = self.books();
                if !books.conflicts.contains(&letter) {
                    books.conflicts.push(letter);
                }
                Ok(std::future::ready(Ok(Outcome::Conflict { kept: true })).boxed())
            }
        }
    }
}
