//! Admission: registering flows, enqueueing runs, idempotency keys.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};

use crate::{
    api::{ApiError, EnqueueRequest, ErrorKind, Reply, RunState},
    code,
    flow::{names::distance, spec::FlowDef},
    id::{Digest, FlowNo, RunId, is_name},
    json::{Json, Payload},
    limits::{
        HEADERS_MAX_BYTES, IDEMPOTENCY_KEY_MAX_BYTES, INPUT_MAX_BYTES, PRIORITY_DEFAULT, PRIORITY_MAX, READY_AT_MAX,
    },
    queue::{
        decide::{Desk, refusal},
        effect::{Effect, Ticket},
        event::{Enqueued, Event},
    },
};

impl Desk<'_> {
    pub(crate) fn register(&mut self, ticket: Ticket, tenant: String, def: Box<FlowDef>, warnings: Vec<String>) {
        if !is_name(&tenant) {
            let error = refusal(ErrorKind::Usage, format!("tenant '{tenant}' is not a name (letters, digits, . _ -)"));
            return self.effect(Effect::Reply { ticket, reply: Reply::Error(error) });
        }
        let digest = def.digest;
        let known = self.state.latest_flow(&tenant, &def.id).and_then(|no| self.state.flows.get(&no));
        let new = known.is_none_or(|known| known.def.digest != digest);
        let flow = def.id.clone();
        if new {
            let no = FlowNo(self.state.flows.keys().next_back().map_or(1, |last| last.0 + 1));
            self.fact(Event::FlowRegistered { no, tenant, def });
        }
        self.effect(Effect::Reply {
            ticket,
            reply: Reply::Registered { flow, digest: format!("{digest}"), warnings, new },
        });
    }

    pub(crate) fn enqueue(&mut self, ticket: Ticket, request: &EnqueueRequest, input: Payload) {
        let reply = match self.try_enqueue(request, input) {
            Ok(reply) => reply,
            Err(error) => Reply::Error(*error),
        };
        self.effect(Effect::Reply { ticket, reply });
    }

    fn try_enqueue(&mut self, request: &EnqueueRequest, input: Payload) -> Result<Reply, Box<ApiError>> {
        let no = self.state.latest_flow(&request.tenant, &request.flow).ok_or_else(|| self.unknown_flow(request))?;
        let key = checked_key(request)?;
        checked_request(request, &input)?;
        let input_digest = key.as_ref().map(|_| match &input {
            Payload::Inline(json) => Digest::of(json.get().as_bytes()),
            Payload::Blob(blob) => blob.digest,
        });
        if let Some(key) = &key
            && let Some(reply) = self.held_key(request, key, input_digest)?
        {
            return Ok(reply);
        }
        let wanted = self.state.flows.get(&no).map_or(&[][..], |flow| &flow.def.caller_env);
        if request.asks_env && !wanted.is_empty() {
            return Ok(Reply::FlowEnv(wanted.to_vec()));
        }
        let policy = self.world.policy;
        if self.state.depth() >= policy.hard_depth {
            return Err(Box::new(full(format!("the queue holds hard_depth ({}) tasks", policy.hard_depth))));
        }
        if key.is_some() && self.state.keys.len() as u64 + self.world.results.key_count() >= policy.keys_max {
            let error = full(format!("the queue holds keys_max ({}) idempotency keys", policy.keys_max));
            let hint =
                format!("free one: tm queue forget-key {} KEY, or wait: each goes with its result", request.flow);
            return Err(Box::new(ApiError { hint: Some(hint), retry_after_ms: None, ..error }));
        }
        let now = self.world.now;
        let wall = self.state.wall(now);
        let ready_at = request.at.into_iter().chain(request.delay_ms.map(|delay| wall.plus(delay))).max();
        if ready_at.is_some_and(|at| at > READY_AT_MAX) {
            let message = format!("the run would start after {READY_AT_MAX}, the latest time there is");
            return Err(Box::new(refusal(ErrorKind::Usage, message)));
        }
        let run = RunId::mint(now, policy.partition, &self.state.secret, self.world.sequence, self.state.newest_run);
        let def = self.state.flows.get(&no).map(|flow| Arc::clone(&flow.def));
        let wanted = |name: &str| def.as_ref().is_some_and(|def| def.caller_env.iter().any(|wanted| wanted == name));
        self.fact(Event::Enqueued(Box::new(Enqueued {
            run,
            flow: no,
            input,
            priority: request.priority.unwrap_or(PRIORITY_DEFAULT),
            key,
            input_digest,
            headers: request.headers.clone(),
            trace: request.trace.clone(),
            env: request.env.iter().filter(|(name, _)| wanted(name)).cloned().collect(),
            ready_at: ready_at.filter(|&at| at > wall),
        })));
        self.advance(run);
        Ok(Reply::Enqueued { run })
    }

    /// The answer for a key that a run holds.
    fn held_key(
        &mut self,
        request: &EnqueueRequest,
        key: &str,
        input_digest: Option<Digest>,
    ) -> Result<Option<Reply>, Box<ApiError>> {
        let name = (Arc::from(request.tenant.as_str()), request.flow.clone(), String::from(key));
        let Some(run) = self.ended().holder(&name) else { return Ok(None) };
        let (held_digest, state, result) = if let Some(held) = self.state.runs.get(&run) {
            (held.extra.as_ref().and_then(|extra| extra.input_digest), held.state, None)
        } else {
            let Some(Ok(held)) = self.ended().run(run) else { return Ok(None) };
            let read = |payload: &Payload| match payload {
                Payload::Inline(json) => Some(json.clone()),
                Payload::Blob(blob) => self.world.blobs.read(&blob.digest),
            };
            (held.input_digest, RunState::Succeeded, held.output.as_ref().and_then(read))
        };
        if held_digest != input_digest {
            return Err(Box::new(ApiError {
                hint: Some(format!("use another key, or free it: {}", forgetting(request, key))),
                ..refusal(ErrorKind::Failed, format!("the idempotency key is held by run {run} with another input"))
            }));
        }
        self.fact(Event::Deduplicated { run });
        Ok(Some(Reply::Duplicate { run, state, result }))
    }

    fn unknown_flow(&self, request: &EnqueueRequest) -> Box<ApiError> {
        let ids = self.state.latest.keys().filter(|(tenant, _)| **tenant == *request.tenant).map(|(_, id)| id.as_str());
        let mut near: Vec<(usize, &str)> =
            ids.map(|id| (distance(id, &request.flow), id)).filter(|(far, id)| *far <= 2.max(id.len() / 3)).collect();
        near.sort_unstable();
        let names = near.iter().take(3).map(|(_, id)| *id).collect::<Vec<_>>().join(", ");
        let hint = if names.is_empty() {
            String::from("give the path of a flow file, or start the pool with --runtime FOLDER to load its flows")
        } else {
            format!("did you mean: {names}")
        };
        let message = format!("flow '{}' is not registered for tenant '{}'", request.flow, request.tenant);
        Box::new(ApiError { hint: Some(hint), ..refusal(ErrorKind::Invalid, message) })
    }

    pub(crate) fn forget_key(&mut self, ticket: Ticket, tenant: &str, flow: String, key: String) {
        let name = (Arc::from(tenant), flow.clone(), key.clone());
        let holder = self.ended().holder(&name);
        if let Some(run) = holder {
            let until = self.ended().run(run).and_then(Result::ok).map(|run| run.expires_at);
            self.fact(match until {
                Some(until) => Event::KeyFreed { run, until },
                None => Event::KeyForgotten { tenant: tenant.into(), flow, key },
            });
        }
        let existed = holder.is_some();
        self.effect(Effect::Reply { ticket, reply: Reply::Forgotten { existed } });
    }
}

/// The command that frees a key, as a shell takes it.
fn forgetting(request: &EnqueueRequest, key: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@%+=,".contains(&byte);
    let is_plain = key.bytes().all(plain) && !key.starts_with('-');
    let key = if is_plain { String::from(key) } else { format!("'{}'", key.replace('\'', "'\\''")) };
    let dashes = if key.starts_with("'-") { "-- " } else { "" };
    let tenant = match request.tenant.as_str() {
        "default" => String::new(),
        tenant => format!("--tenant {tenant} "),
    };
    format!("tm queue forget-key {tenant}{dashes}{} {key}", request.flow)
}

/// The key of the request, or of its headers.
fn checked_key(request: &EnqueueRequest) -> Result<Option<String>, Box<ApiError>> {
    let from_headers = || {
        let headers: serde_json::Value = serde_json::from_str(request.headers.as_ref()?.get()).ok()?;
        headers.get("idempotency_key")?.as_str().map(String::from)
    };
    let Some(key) = request.idempotency_key.clone().or_else(from_headers) else { return Ok(None) };
    if key.is_empty() || key.len() > IDEMPOTENCY_KEY_MAX_BYTES {
        let message =
            format!("an idempotency key has 1 to {IDEMPOTENCY_KEY_MAX_BYTES} bytes, this one has {}", key.len());
        return Err(Box::new(refusal(ErrorKind::Usage, message)));
    }
    Ok(Some(key))
}

fn checked_request(request: &EnqueueRequest, input: &Payload) -> Result<(), Box<ApiError>> {
    let usage = |message| Err(Box::new(refusal(ErrorKind::Usage, message)));
    if input.size_bytes() > INPUT_MAX_BYTES {
        let message = format!("the input has {} bytes, at most {INPUT_MAX_BYTES} are allowed", input.size_bytes());
        let code = Some(code::INPUT_TOO_LARGE.into());
        return Err(Box::new(ApiError { code, ..refusal(ErrorKind::Usage, message) }));
    }
    if let Payload::Inline(json) = input
        && !is_object(json)
    {
        return usage(String::from("the input is not a JSON object"));
    }
    for (name, json) in [("headers", &request.headers), ("trace", &request.trace)] {
        let Some(json) = json else { continue };
        if !is_object(json) {
            return usage(format!("{name} is not a JSON object"));
        }
        if json.get().len() > HEADERS_MAX_BYTES {
            return usage(format!("{name} has {} bytes, at most {HEADERS_MAX_BYTES} are allowed", json.get().len()));
        }
    }
    if request.priority.is_some_and(|priority| priority > PRIORITY_MAX) {
        return usage(format!("priority is 0 to {PRIORITY_MAX}"));
    }
    let env_bytes: usize = request.env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if env_bytes > HEADERS_MAX_BYTES {
        return usage(format!(
            "the caller's variables have {env_bytes} bytes, at most {HEADERS_MAX_BYTES} are allowed"
        ));
    }
    Ok(())
}

fn is_object(json: &Json) -> bool {
    json.get().trim_start().starts_with('{')
}

fn full(message: String) -> ApiError {
    ApiError {
        code: Some(code::QUEUE_FULL.into()),
        retry_after_ms: Some(1000),
        hint: Some(String::from("try again when tasks are done; nothing was enqueued")),
        ..refusal(ErrorKind::Busy, message)
    }
}
