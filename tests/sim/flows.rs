//! The flows of the simulation, small and of every shape, and the expressions that they use.

use serde_json::Value;
use tm_core::{
    backoff::RetryPolicy,
    flow::{
        advance::Blobs,
        evaluate::{Evaluate, EvaluateFault},
        spec::{FlowDef, GrantsDef, StepDef},
    },
    id::Digest,
    json::Json,
    limits::Limits,
    wire::Required,
};

pub(crate) const TENANTS: [&str; 3] = ["anton", "berta", "caesar"];
pub(crate) const FLOWS: [&str; 7] = ["single", "chain", "diamond", "fan", "faulty", "late-fault", "hurried"];

fn step(id: &str, needs: &[u16]) -> StepDef {
    StepDef {
        id: id.into(),
        component: Digest([0; 32]),
        required: Required::default(),
        needs: needs.to_vec(),
        when: None,
        for_each: None,
        max_parallel: 2,
        input: None,
        limits: Limits::DEFAULT,
        retries: RetryPolicy {
            max_attempts: 3,
            base_ms: 20,
            factor_thousandths: 2000,
            jitter_ms: 5,
            max_delay_ms: 200,
        },
        grants: GrantsDef::default(),
    }
}

/// The flow of this name; another `version` is another registration.
pub(crate) fn flow(id: &str, version: u64) -> FlowDef {
    let template = |text: &str| Json::parse(text).ok();
    let mut steps = match id {
        "chain" => vec![step("first", &[]), step("second", &[0]), step("third", &[1])],
        "diamond" => {
            let left = StepDef { when: Some("input.flag".into()), ..step("left", &[0]) };
            vec![step("top", &[]), left, step("right", &[0]), step("bottom", &[1, 2])]
        }
        "fan" => {
            let each = StepDef {
                for_each: Some("steps.list.output.items".into()),
                input: template(r#"{"item":"{{ item }}"}"#),
                ..step("each", &[0])
            };
            vec![step("list", &[]), each, step("sum", &[1])]
        }
        "faulty" => vec![StepDef { input: template(r#"{"x":"{{ input.missing }}"}"#), ..step("only", &[]) }],
        "late-fault" => vec![step("first", &[]), StepDef { when: Some("boom".into()), ..step("second", &[0]) }],
        _ => vec![step("only", &[])],
    };
    // Another version is another program too: a run keeps the one that it was enqueued with.
    steps.iter_mut().for_each(|step| step.component = Digest::of(format!("{id} {version} {}", step.id).as_bytes()));
    FlowDef {
        id: id.into(),
        version: Some(version.to_string()),
        run_timeout_ms: (id == "hurried").then_some(150),
        digest: Digest::of(format!("{id} {version}").as_bytes()),
        steps,
        caller_env: Vec::new(),
    }
}

/// Everything but plain paths faults.
pub(crate) struct Expressions;

impl Evaluate for Expressions {
    fn value(&self, expression: &str, _: &Value) -> Result<Value, EvaluateFault> {
        Err(EvaluateFault { message: format!("`{expression}` is not known here") })
    }

    fn text(&self, template: &str, _: &Value) -> Result<String, EvaluateFault> {
        Ok(template.into())
    }

    fn check_value(&self, _: &str) -> Result<(), EvaluateFault> {
        Ok(())
    }

    fn check_text(&self, _: &str) -> Result<(), EvaluateFault> {
        Ok(())
    }
}

/// No payload here is large.
pub(crate) struct NoBlobs;

impl Blobs for NoBlobs {
    fn read(&self, _: &Digest) -> Option<Json> {
        None
    }

    fn put(&self, _: &Json) -> Option<Digest> {
        None
    }
}
