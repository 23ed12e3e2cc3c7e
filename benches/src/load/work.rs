//! What clients of a training loop send.

use std::ops::Range;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

/// How a client cuts its trajectories into requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// One trajectory a request, as OpenRLHF sends them.
    Singles,
    /// The responses to one prompt a request, as a GRPO loop has them.
    Groups,
    /// All in one request, as verl posts a rollout.
    Bulk,
}

#[derive(clap::Args)]
pub(crate) struct WorkArgs {
    /// A JSON array of `{"prompt": [ids], "response": [ids]}` to send instead of made-up tokens.
    #[arg(long)]
    input: Option<std::path::PathBuf>,
    /// Trajectories of each client.
    #[arg(long, default_value_t = 256)]
    trajectories: usize,
    /// Responses to each prompt.
    #[arg(long, default_value_t = 1)]
    group: usize,
    /// Tokens of a prompt beside the shared ones: `FEWEST..MOST`.
    #[arg(long, default_value = "40..160", value_parser = range)]
    prompt_tokens: Range<usize>,
    /// Tokens of a response.
    #[arg(long, default_value = "20..240", value_parser = range)]
    response_tokens: Range<usize>,
    /// Tokens that all prompts begin with.
    #[arg(long, default_value_t = 0)]
    shared_tokens: usize,
    /// Every trajectory's prompt begins with a token of its own, so that there is nothing to share: the same work without
    /// sharing.
    #[arg(long)]
    apart: bool,
    /// Decides the tokens; the same seed sends the same.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn range(text: &str) -> Result<Range<usize>, String> {
    let (fewest, most) = text.split_once("..").ok_or("FEWEST..MOST")?;
    let number = |n: &str| n.parse::<usize>().map_err(|e| e.to_string());
    match number(fewest)?..number(most)? {
        range if range.is_empty() => Err("an empty range".into()),
        range => Ok(range),
    }
}

/// A request and its tokens.
pub(crate) struct Request {
    pub(crate) body: String,
    pub(crate) tokens: usize,
}

impl WorkArgs {
    /// The requests of one client. Token ids are below `vocabulary`.
    pub(crate) fn requests(
        &self,
        shape: Shape,
        client: usize,
        vocabulary: u32,
    ) -> anyhow::Result<Vec<Request>> {
        let groups = match &self.input {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                read(&serde_json::from_str::<Vec<Value>>(&text)?)
            }
            None => self.made_up(client, vocabulary),
        };
        let mut per_request = match shape {
            Shape::Singles => {
                let single =
                    |(p, rs): &Group| rs.iter().map(|r| vec![(p.clone(), vec![r.clone()])]).collect();
                groups.iter().flat_map::<Vec<_>, _>(single).collect()
            }
            Shape::Groups => groups.into_iter().map(|group| vec![group]).collect(),
            Shape::Bulk => vec![groups],
        };
        if self.apart {
            let mut first = (0..vocabulary).cycle();
            per_request.iter_mut().for_each(|groups| *groups = apart(groups, &mut first));
        }
        Ok(per_request.iter().map(|groups| request(groups)).collect())
    }

    fn made_up(&self, client: usize, vocabulary: u32) -> Vec<Group> {
        let mut shared = StdRng::seed_from_u64(self.seed);
        let mut own = StdRng::seed_from_u64(self.seed.wrapping_add(1 + client as u64));
        let ids =
            |rng: &mut StdRng, n: usize| (0..n).map(|_| rng.random_range(0..vocabulary)).collect::<Vec<_>>();
        let prefix = ids(&mut shared, self.shared_tokens);
        let groups = (0..self.trajectories.div_ceil(self.group.max(1))).map(|_| {
            let n = own.random_range(self.prompt_tokens.clone());
            let prompt = [prefix.clone(), ids(&mut own, n)].concat();
            let responses = (0..self.group.max(1)).map(|_| {
                let n = own.random_range(self.response_tokens.clone());
                ids(&mut own, n)
            });
            (prompt, responses.collect())
        });
        groups.collect()
    }
}

/// A prompt and its responses.
type Group = (Vec<u32>, Vec<Vec<u32>>);

/// Rows with the same prompt in a row are a group.
fn read(rows: &[Value]) -> Vec<Group> {
    let ids = |v: &Value| -> Vec<u32> { serde_json::from_value(v.clone()).unwrap_or_default() };
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let (prompt, response) = (ids(&row["prompt"]), ids(&row["response"]));
        match groups.last_mut() {
            Some((last, responses)) if *last == prompt => responses.push(response),
            _ => groups.push((prompt, vec![response])),
        }
    }
    groups
}

/// Every trajectory a group of its own, with another first token.
fn apart(groups: &[Group], first: &mut impl Iterator<Item = u32>) -> Vec<Group> {
    let trajectories =
        groups.iter().flat_map(|(prompt, responses)| responses.iter().map(move |r| (prompt, r)));
    let apart = trajectories.map(|(prompt, response)| {
        let prompt = first.next().into_iter().chain(prompt.iter().skip(1).copied());
        (prompt.collect(), vec![response.clone()])
    });
    apart.collect()
}

fn request(groups: &[Group]) -> Request {
    let input = |(prompt, responses): &Group| match &responses[..] {
        [one] => json!({"prompt": prompt, "response": one}),
        all => json!({"prompt": prompt, "responses": all}),
    };
    let tokens =
        |(prompt, responses): &Group| responses.iter().map(|r| prompt.len() + r.len()).sum::<usize>();
    Request {
        body: json!({"inputs": groups.iter().map(input).collect::<Vec<_>>()}).to_string(),
        tokens: groups.iter().map(tokens).sum(),
    }
}
