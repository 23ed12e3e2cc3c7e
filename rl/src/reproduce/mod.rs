//! The whole experiment, from nothing to a table: data, policy, backbone, pairs, reward models, a server that has them all,
//! PPO and REINFORCE with each, tests, plots, `RESULTS.md`. Every step is a command that is printed and can be run by hand;
//! started again, it goes on where it was.

mod judges;
mod plan;
mod report;
mod results;
mod server;
mod size;
mod stage;

use std::path::PathBuf;

use clap::Args;

use judges::{Arm, arms, served};
use plan::{checkpoint, difficulty, events};
use results::Results;
use server::Server;
use size::Size;
use stage::{Stage, Workshop};

/// Flags of `qrm-rl reproduce`.
#[derive(Debug, Clone, Args)]
pub struct ReproduceArgs {
    /// Directory of all that the experiment makes.
    #[arg(long, default_value = "reproduction")]
    output: PathBuf,
    /// The same with models that have learnt nothing: minutes instead of hours, to see that every part works.
    #[arg(long)]
    quick: bool,
    /// Seeds of every policy; default: 3, and 2 when quick.
    #[arg(long)]
    seeds: Option<usize>,
    /// Whose rewards are compared, by commas; default: all. Reward models that none of them needs are not trained.
    #[arg(long, value_delimiter = ',', value_parser = judges::names())]
    judges: Vec<String>,
    /// Commands that run side by side and divide the cores among them: with models as small as these that is faster.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
}

impl ReproduceArgs {
    /// Does what is not done yet, and writes what there is to `OUTPUT/RESULTS.md`.
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut size = if self.quick { Size::QUICK } else { Size::FULL };
        size.seeds = self.seeds.unwrap_or(size.seeds).max(1);
        let shop = Workshop::new(&self.output, self.jobs)?;
        let judges = judges::judges(&self.judges);
        for round in plan::models(&shop, &size, &judges) {
            shop.side_by_side(round.into_iter().map(|stage| vec![stage]))?;
        }
        let models = served(&judges);
        let checkpoints: Vec<(String, String)> =
            models.iter().map(|name| ((*name).to_owned(), checkpoint(&shop, name))).collect();
        let server = Server::start(&checkpoints, &shop.path("logs/server"))?;
        let [paper, controls] = arms(&judges);
        let all = [&paper[..], &controls[..]].concat();
        let untrained = size.difficulties.iter().flat_map(|at| {
            [("policy/model", "sft"), ("backbone/model", "backbone")].map(|(model, name)| {
                vec![plan::test(&shop, &size, *at, model, &format!("{}/{name}.json", difficulty(*at)))]
            })
        });
        shop.side_by_side(untrained)?;
        shop.side_by_side(before(&shop, &size, &server, &models).into_iter().map(|stage| vec![stage]))?;
        let (first, others) = size.difficulties.split_at(1);
        // An experiment that was stopped has the paper's comparison, perhaps with fewer seeds.
        for (arms, difficulties) in [(&paper, first), (&controls, first), (&paper, others)] {
            for at in difficulties {
                for seed in 0..size.seeds {
                    shop.side_by_side(arms.iter().map(|arm| {
                        let name = format!("{}/{}-{seed}", difficulty(*at), arm.name());
                        let run = plan::run(&shop, &size, server.url(), *at, arm, seed);
                        let test =
                            plan::test(&shop, &size, *at, &format!("{name}/model"), &format!("{name}.json"));
                        vec![run, test]
                    }))?;
                    for stage in after(&shop, &size, &server, *at, arms) {
                        shop.run(stage)?;
                    }
                    report::write(&shop, &size, &models, &Results::read(&shop, &size, &all)?)?;
                }
            }
        }
        drop(server);
        println!("{}", shop.path("RESULTS.md").display());
        Ok(())
    }
}

/// Answers of the policy before, as every model judges them.
fn before(shop: &Workshop, size: &Size, server: &Server, models: &[&str]) -> Vec<Stage> {
    let at = size.difficulties[0];
    let of = |model: &&str| look(shop, size, server, at, "policy/model", model, &format!("before-{model}"));
    models.iter().map(of).collect()
}

/// Answers of what the policy became under the Q-RM and under the ORM, as these judge them.
fn after(shop: &Workshop, size: &Size, server: &Server, at: (usize, usize), arms: &[Arm]) -> Vec<Stage> {
    let is_shown = |arm: &&Arm| at == size.difficulties[0] && ["qrm", "orm"].contains(&arm.judge.name);
    let of = |arm: &Arm| {
        let policy = format!("{}/{}-0/model", difficulty(at), arm.name());
        look(shop, size, server, at, &policy, arm.judge.name, &format!("after-{}", arm.name()))
    };
    arms.iter().filter(is_shown).map(of).collect()
}

fn look(
    shop: &Workshop,
    size: &Size,
    server: &Server,
    at: (usize, usize),
    policy: &str,
    model: &str,
    to: &str,
) -> Stage {
    let flags = format!(
        "sample --policy {} {} --split validation --questions 200 --samples 4 --max-new-tokens {} --with-rewards \
         --reward-model {model} --output @",
        shop.arg(policy),
        events(at),
        size.longest,
    );
    shop.stage("qrm-rl", &format!("looks/{to}.jsonl"), &flags).asks(server.url())
}
