//! A small honest step: takes an order apart, sums it up, answers with a small object.

use tm_guest::prelude::*;

#[payload]
struct Order {
    order: String,
    items: Vec<Item>,
    /// Rounds of pure computing on top, for steps that take a while.
    #[serde(default)]
    rounds: u64,
}

#[payload]
struct Item {
    sku: String,
    count: u64,
    cents: u64,
}

#[payload]
struct Totals {
    order: String,
    count: u64,
    cents: u64,
    dearest: Option<String>,
}

#[step]
fn totals(_ctx: &Context, Json(order): Json<Order>) -> Result<Json<Totals>, StepError> {
    let count = order.items.iter().map(|item| item.count).sum();
    let cents = order.items.iter().map(|item| item.count * item.cents).sum();
    std::hint::black_box((0..order.rounds).fold(1_u64, xorshift));
    let dearest = order.items.into_iter().max_by_key(|item| item.cents).map(|item| item.sku);
    Ok(Json(Totals { order: order.order, count, cents, dearest }))
}

fn xorshift(mut x: u64, _round: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ (x << 17)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tm_guest::testing;

    #[test]
    fn an_order_is_summed_up() {
        let input = json!({"order": "a", "items": [{"sku": "x", "count": 2, "cents": 5}, {"sku": "y", "count": 1, "cents": 9}]});
        let output = testing::run(totals, &Context::test(), input).unwrap();
        assert_eq!(output, json!({"order": "a", "count": 3, "cents": 19, "dearest": "y"}));
    }
}
