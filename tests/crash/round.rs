//! One round: four clients enqueue, somebody is killed, the rest is completed and checked.

use std::{collections::BTreeSet, fmt, process::Child, time::Duration};

use crate::{
    client::{Plan, count, recorded},
    house::{Supervisor, eventually, kill_worker},
    log::{self, Watch},
    random::Random,
    trial::{Count, Trial},
};

const CLIENTS: u32 = 4;
const KEYS_PER_CLIENT: u32 = 520;
const KEYS: u64 = (CLIENTS * KEYS_PER_CLIENT) as u64;
/// Kills within one round until one is proven to have hit its moment.
const KILLS_MAX: u32 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Between a commit's write and its acknowledgements. The kill follows a write of the log at once; that it hit is
    /// proven afterwards: the log holds keys that no client got acknowledged, or a record that was never finished. The
    /// commit's sync may have been over; what counts is that something was written and nobody was told.
    InCommit,
    /// While attempts run. Proven by the log: attempts without an end, or attempts that a worker's death ended.
    LeasesLive,
    /// The moment a client gets an acknowledgement, by that client: what it was told is in the log already. Each client
    /// does it once. A written record survives a kill without its sync, and a reply sent just before its write is too
    /// early by too little: the simulation proves those.
    AtAcknowledgement,
    AnyTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    Supervisor,
    Worker,
    Client,
}

/// What was killed, and what is proven about the moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    rounds: u32,
    acknowledged: usize,
    /// Attempts that were started.
    starts: u64,
    pub(crate) supervisors: u32,
    /// Of these, by a client at an acknowledgement.
    by_clients: u32,
    pub(crate) workers: u32,
    pub(crate) clients: u32,
    /// Processes that a killed supervisor had started and that ended by themselves.
    inherited: usize,
    /// Kills that left runs in the log without an acknowledgement, and all those runs.
    commits: u32,
    unacknowledged: usize,
    torn: u32,
    /// Leases that a supervisor left, and attempts that were lost.
    leases: usize,
    lost: u64,
    pub(crate) commit_rounds: u32,
    pub(crate) lease_rounds: u32,
}

impl Evidence {
    pub(crate) fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.acknowledged += other.acknowledged;
        self.starts += other.starts;
        self.supervisors += other.supervisors;
        self.by_clients += other.by_clients;
        self.workers += other.workers;
        self.clients += other.clients;
        self.inherited += other.inherited;
        self.commits += other.commits;
        self.unacknowledged += other.unacknowledged;
        self.torn += other.torn;
        self.leases += other.leases;
        self.lost += other.lost;
        self.commit_rounds += other.commit_rounds;
        self.lease_rounds += other.lease_rounds;
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rounds, {} runs acknowledged, {} attempts started; ",
            self.rounds, self.acknowledged, self.starts
        )?;
        write!(
            f,
            "killed {} supervisors ({} at an acknowledgement, {} processes with them), {} workers, {} clients; ",
            self.supervisors, self.by_clients, self.inherited, self.workers, self.clients
        )?;
        write!(
            f,
            "{} kills inside a commit ({} runs unacknowledged, {} records torn); {} leases live, {} attempts lost; ",
            self.commits, self.unacknowledged, self.torn, self.leases, self.lost
        )?;
        write!(f, "rounds proven: commit {}, leases {}", self.commit_rounds, self.lease_rounds)
    }
}

pub(crate) struct Round {
    pub(crate) no: u32,
    pub(crate) moment: Moment,
    pub(crate) victim: Victim,
}

/// A client process, which may be killed and started again with the same plan.
struct Client {
    plan: Plan,
    child: Child,
}

impl Client {
    fn is_done(&mut self) -> bool {
        self.child.try_wait().expect("its end").is_some()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Round {
    pub(crate) fn run(&self, trial: &mut Trial, random: &mut Random) -> Evidence {
        let mut evidence = Evidence { rounds: 1, ..Evidence::default() };
        let mut supervisor = Supervisor::start(&trial.home);
        let mut clients: Vec<_> = (0..CLIENTS).map(|client| self.client(trial, client, random)).collect();
        match self.victim {
            Victim::Supervisor => self.kill_supervisor(trial, &mut supervisor, &mut clients, random, &mut evidence),
            Victim::Worker => {
                self.wait(&clients, random.within(0, KEYS), random);
                let workers = supervisor.workers(&trial.home);
                evidence.workers += u32::from(kill_worker(workers[random.place(workers.len())]));
            }
            Victim::Client => {
                let one = random.place(clients.len());
                // Well before the end of its own keys, so that it has something left to do.
                self.wait(&clients[one..=one], random.within(0, u64::from(KEYS_PER_CLIENT / 2)), random);
                let Client { plan, child } = &mut clients[one];
                child.kill().expect("SIGKILL");
                evidence.clients += u32::from(!child.wait().expect("its end").success());
                *child = trial.home.client(plan);
            }
        }
        for client in &mut clients {
            let mut ended = None;
            eventually("every client has all its acknowledgements", || {
                ended = client.child.try_wait().expect("its end");
                ended.is_some()
            });
            assert!(ended.is_some_and(|status| status.success()), "a client failed\n{}", trial.home.said());
            trial.take(recorded(&client.plan.acks).acks);
        }
        let keys: Vec<_> = clients.iter().flat_map(|client| client.plan.all_keys()).collect();
        Count { starts: evidence.starts, lost: evidence.lost } = trial.settle(supervisor, &keys);
        evidence.acknowledged = keys.len();
        // A proof counts whatever the round was after; but only steps that take a while count as leases.
        let leased = self.moment == Moment::LeasesLive && evidence.lost > 0;
        (evidence.commit_rounds, evidence.lease_rounds) = ((evidence.commits > 0).into(), leased.into());
        evidence
    }

    fn client(&self, trial: &Trial, client: u32, random: &mut Random) -> Client {
        let plan = Plan {
            acks: trial.home.path(format!("acks-{}-{client}", self.no)),
            round: self.no,
            client,
            keys: KEYS_PER_CLIENT,
            window: usize::try_from(random.within(1, 48)).expect("small"),
            busy_steps: self.moment == Moment::LeasesLive,
            kills_at: (self.moment == Moment::AtAcknowledgement).then(|| {
                let at = random.within(0, 100) + u64::from(client) * 100 + 1;
                u32::try_from(at).expect("below the number of keys")
            }),
        };
        let child = trial.home.client(&plan);
        Client { plan, child }
    }

    /// Waits for a number of acknowledgements of these clients, and a random little longer.
    fn wait(&self, clients: &[Client], acknowledged: u64, random: &mut Random) {
        eventually("clients are acknowledged", || acks(clients) >= acknowledged);
        pause(random.within(0, 3000));
    }

    fn kill_supervisor(
        &self,
        trial: &Trial,
        supervisor: &mut Supervisor,
        clients: &mut [Client],
        random: &mut Random,
        evidence: &mut Evidence,
    ) {
        let mut logged = trial.keys();
        for kill in 0..KILLS_MAX {
            // The first anywhere before the last quarter, the others soon after: work is left to be proven with.
            if self.moment == Moment::AtAcknowledgement {
                eventually("a client kills its supervisor, or all are done", || {
                    supervisor.is_dead() || clients.iter_mut().all(Client::is_done)
                });
                if !supervisor.is_dead() {
                    return;
                }
            } else {
                let at = if kill == 0 { random.within(0, KEYS * 3 / 4) } else { acks(clients) + random.within(1, 60) };
                self.wait(clients, at, random);
            }
            if self.moment == Moment::InCommit {
                Watch::new(&trial.home.roots().queue).next(500);
                spin(random.within(0, 200));
            }
            evidence.inherited += supervisor.kill();
            evidence.supervisors += 1;
            evidence.by_clients += u32::from(self.moment == Moment::AtAcknowledgement);
            // All that the supervisor said has been read and recorded before the log is compared with it.
            for client in &mut *clients {
                eventually("a client has seen the end of its supervisor", || {
                    client.is_done() || !recorded(&client.plan.acks).connected
                });
            }
            trial.home.tm(&["queue", "verify"]);
            let history = log::read(&trial.home.roots(), &trial.compacted);
            let acked: BTreeSet<_> =
                clients.iter().flat_map(|client| recorded(&client.plan.acks).acks).map(|(key, _)| key).collect();
            let gone: Vec<_> = acked.iter().filter(|&key| !history.keys.contains_key(key)).collect();
            assert!(gone.is_empty(), "acknowledged, but not in the log that the killed supervisor left: {gone:?}");
            let unacknowledged =
                history.keys.keys().filter(|&key| !acked.contains(key) && !logged.contains_key(key)).count();
            evidence.unacknowledged += unacknowledged;
            evidence.torn += u32::from(history.cut_bytes > 0);
            evidence.commits += u32::from(unacknowledged > 0 || history.cut_bytes > 0);
            evidence.leases += history.leases();
            logged = history.keys;
            *supervisor = Supervisor::start(&trial.home);
            let proven = match self.moment {
                Moment::InCommit => evidence.commits > 0,
                Moment::LeasesLive => evidence.leases > 0,
                Moment::AtAcknowledgement => false,
                Moment::AnyTime => true,
            };
            if proven || (self.moment != Moment::AtAcknowledgement && acks(clients) + 100 > KEYS) {
                return;
            }
        }
    }
}

/// Acknowledgements that these clients have recorded.
fn acks(clients: &[Client]) -> u64 {
    clients.iter().map(|client| count(&client.plan.acks)).sum()
}

/// A random moment, not a wait for anything.
fn pause(micros: u64) {
    std::thread::sleep(Duration::from_micros(micros));
}

/// As [`pause`], but too short for the scheduler.
fn spin(micros: u64) {
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_micros(micros) {
        std::hint::spin_loop();
    }
}
