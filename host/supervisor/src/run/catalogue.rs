//! The flows and components that this process knows: what can run now, and with which native artefact.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use tm_core::{
    code,
    flow::spec::{FlowDef, StepDef},
    id::{Digest, FlowNo},
    queue::{
        decide::Runnable,
        lanes::{Profile, ProfileNo},
        state::Registered,
    },
    wire::Required,
};

use crate::{
    config::{Ceilings, WatchedCeilings},
    workers::profile::{ProfileSpec, worker_mb},
};

/// Where a component's native artefact is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Native {
    Wanted,
    Compiling,
    Here,
    /// Tried again by itself.
    Held {
        why: String,
    },
    Failed {
        code: &'static str,
        message: String,
    },
}

#[derive(Debug)]
pub(super) struct Component {
    pub(super) no: u32,
    pub(super) native: Native,
}

/// A tenant's component: two tenants never share a native artefact.
pub(super) type ComponentKey = (Arc<str>, Digest);

struct Known {
    tenant: Arc<str>,
    def: Arc<FlowDef>,
    /// By step: why the operator's ceiling refuses it.
    denied: Vec<Option<String>>,
}

pub(super) struct Catalogue {
    watched: WatchedCeilings,
    /// Those that `denied` was made from.
    ceilings: Arc<Ceilings>,
    store: PathBuf,
    flows: BTreeMap<FlowNo, Known>,
    components: BTreeMap<ComponentKey, Component>,
    specs: BTreeMap<Profile, ProfileSpec>,
}

impl Catalogue {
    pub(super) fn new(mut watched: WatchedCeilings, store: &Path) -> Self {
        let ceilings = Arc::new(watched.current().clone());
        let (flows, components, specs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { watched, ceilings, store: store.to_owned(), flows, components, specs }
    }

    /// Learns of a registered flow; returns the components that are new and must be compiled or found.
    pub(super) fn learn(&mut self, no: FlowNo, flow: &Registered) -> Vec<ComponentKey> {
        let mut new = Vec::new();
        let denied = denied(&self.ceilings, &flow.tenant, &flow.def);
        for step in &flow.def.steps {
            let key = (Arc::clone(&flow.tenant), step.component);
            let next = u32::try_from(self.components.len()).unwrap_or(u32::MAX);
            self.components.entry(key.clone()).or_insert_with(|| {
                new.push(key);
                Component { no: next, native: Native::Wanted }
            });
            self.widen(&flow.tenant, step);
        }
        self.flows.insert(no, Known { tenant: Arc::clone(&flow.tenant), def: Arc::clone(&flow.def), denied });
        new
    }

    /// Holds every step against the ceiling again when the configuration changed: a revocation reaches runs in flight.
    pub(super) fn refresh(&mut self) {
        let now = self.watched.current();
        if *now == *self.ceilings {
            return;
        }
        self.ceilings = Arc::new(now.clone());
        for known in self.flows.values_mut() {
            known.denied = denied(&self.ceilings, &known.tenant, &known.def);
        }
    }

    /// The ceilings in force.
    pub(super) fn ceilings(&self) -> Arc<Ceilings> {
        Arc::clone(&self.ceilings)
    }

    /// Why the ceiling refuses steps of a flow, on a line each; none when it refuses none.
    pub(super) fn excesses(&self, no: FlowNo, flow: &Registered) -> Option<String> {
        let listed = |denied: &[Option<String>]| denied.iter().flatten().cloned().reduce(|all, one| all + "\n" + &one);
        match self.flows.get(&no) {
            Some(known) => listed(&known.denied),
            // The first turn has not told of it yet.
            None => listed(&denied(&self.ceilings, &flow.tenant, &flow.def)),
        }
    }

    /// The pool of a profile is sized by the largest of its steps.
    fn widen(&mut self, tenant: &str, step: &StepDef) {
        let profile = Profile::of(tenant, step);
        let folder = self.store.join("tenants").join(tenant);
        let spec = self.specs.entry(profile.clone()).or_insert_with(|| ProfileSpec {
            profile,
            staging: folder.join("tmp"),
            results: folder.join("results"),
            scratch: folder.join("scratch"),
            memory_max_mb: 0,
            stack_max_kb: 0,
            required: Required::default(),
        });
        spec.memory_max_mb = spec.memory_max_mb.max(step.limits.memory_mb);
        spec.stack_max_kb = spec.stack_max_kb.max(step.limits.stack_kb);
        let (most, one) = (&mut spec.required, &step.required);
        most.core_instances = most.core_instances.max(one.core_instances);
        most.memories = most.memories.max(one.memories);
        most.tables = most.tables.max(one.tables);
        most.table_elements_max = most.table_elements_max.max(one.table_elements_max);
        most.memory_min_bytes = most.memory_min_bytes.max(one.memory_min_bytes);
        most.instance_bytes = most.instance_bytes.max(one.instance_bytes);
    }

    /// What the smallest worker of all profiles needs, in MiB; none without flows.
    pub(super) fn smallest_worker_mb(&self) -> Option<u64> {
        self.specs.values().map(|spec| worker_mb(spec.memory_max_mb, spec.stack_max_kb)).min()
    }

    pub(super) fn spec(&self, profile: &Profile) -> Option<&ProfileSpec> {
        self.specs.get(profile)
    }

    pub(super) fn def(&self, flow: FlowNo) -> Option<(&Arc<str>, &Arc<FlowDef>)> {
        self.flows.get(&flow).map(|known| (&known.tenant, &known.def))
    }

    pub(super) fn component(&self, key: &ComponentKey) -> Option<&Component> {
        self.components.get(key)
    }

    pub(super) fn set_native(&mut self, key: &ComponentKey, native: Native) {
        if let Some(component) = self.components.get_mut(key) {
            component.native = native;
        }
    }

    pub(super) fn runnable(&self, flow: FlowNo, step: u16) -> Runnable {
        let Some(known) = self.flows.get(&flow) else { return Runnable::Compiling };
        if let Some(Some(message)) = known.denied.get(usize::from(step)) {
            return Runnable::Denied { code: code::CAPABILITY_DENIED, message: message.clone() };
        }
        let native = known
            .def
            .steps
            .get(usize::from(step))
            .and_then(|step| self.components.get(&(Arc::clone(&known.tenant), step.component)))
            .map(|component| &component.native);
        match native {
            Some(Native::Here) => Runnable::Yes,
            Some(Native::Held { why }) => Runnable::Held { why: why.clone() },
            Some(Native::Failed { code, message }) => Runnable::Denied { code, message: message.clone() },
            Some(Native::Wanted | Native::Compiling) | None => Runnable::Compiling,
        }
    }
}

/// By step: why the ceiling refuses it.
fn denied(ceilings: &Ceilings, tenant: &str, def: &FlowDef) -> Vec<Option<String>> {
    let check = |step: &StepDef| ceilings.check(tenant, None, &step.id, &step.grants, &step.limits).err();
    def.steps.iter().map(|step| check(step).map(|excess| excess.to_string())).collect()
}

/// The number of a granted folder in a worker of the step's profile.
pub(super) fn folder_no(profile: &Profile, host: &str) -> Option<u32> {
    profile.folders.iter().position(|(folder, _)| folder == host).and_then(|at| u32::try_from(at).ok())
}

/// A profile by its number in the state's lanes.
pub(super) fn profile_of(state: &tm_core::queue::state::State, no: ProfileNo) -> Option<&Profile> {
    state.indexes.lanes.profile(no)
}
