//! The smallest step: a name in, a greeting out.

use tm_guest::prelude::*;

#[payload]
struct In {
    name: Option<String>,
}

#[payload]
struct Out {
    greeting: String,
}

#[step]
fn hello(_ctx: &Context, Json(input): Json<In>) -> Result<Json<Out>, StepError> {
    let name = input.name.as_deref().unwrap_or("world");
    Ok(Json(Out { greeting: format!("hello, {name}") }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tm_guest::testing;

    #[test]
    fn it_greets_by_name() {
        let output = testing::run(hello, &Context::test(), json!({"name": "x"})).unwrap();
        assert_eq!(output, json!({"greeting": "hello, x"}));
    }

    #[test]
    fn without_a_name_it_greets_the_world() {
        let output = testing::run(hello, &Context::test(), json!({})).unwrap();
        assert_eq!(output, json!({"greeting": "hello, world"}));
    }

    #[test]
    fn a_name_that_is_no_text_is_invalid_input() {
        let error = testing::run(hello, &Context::test(), json!({"name": 7})).unwrap_err();
        assert_eq!(error.code(), "INVALID_INPUT");
    }
}
