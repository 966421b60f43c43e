//! `cargo xtask`: builds, boots and tests nido.

mod apt;
mod back_ends;
mod bench;
mod bench_compare;
mod bench_criterion;
mod bench_migrate;
mod bench_nested;
mod bench_samples;
mod bench_shadow;
mod boot;
mod build;
mod bundle;
mod check;
mod cloud;
mod debian;
mod fuzz;
mod hang;
mod kernel;
mod kvm_tests;
mod lab_command;
mod level0;
mod newer;
mod newer_qemu;
mod paths;
mod place;
mod process;
mod test;
mod tools;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use lab_command::Manner;

/// Build, boot and test nido. Everything that is missing is installed or built on first use.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a Linux guest in nido, with a shell on this terminal (Ctrl-A x quits).
    ///
    /// Where standard input is no terminal, the guest checks itself and powers off instead. The
    /// guest has a remapping unit in scalable mode, two disks, a network, an entropy source and
    /// an edu device.
    Boot {
        #[command(flatten)]
        place: PlaceOptions,
        /// Check the guest and power off, even on a terminal.
        #[arg(long)]
        check: bool,
        /// Further options of nido, as in `-- --cpus 4 -v`.
        #[arg(last = true, value_name = "NIDO OPTIONS")]
        options: Vec<String>,
    },
    /// Run scenarios: real kernels in front of nido, a line with a verdict for each.
    ///
    /// Every console is kept, and named when a scenario fails. NIDO_LEVEL1_PARAMETERS in the
    /// environment adds to the command line of level 1's kernel.
    Lab {
        #[command(flatten)]
        place: PlaceOptions,
        /// Only list the scenarios.
        #[arg(long)]
        list: bool,
        /// List them as the table of docs/lab.md.
        #[arg(long, requires = "list")]
        markdown: bool,
        /// Show the guest's console.
        #[arg(long, short)]
        verbose: bool,
        /// Run each scenario this often.
        #[arg(long, default_value_t = 1, value_name = "N")]
        repeat: u32,
        /// Run so many at once in level 1; as many as there are processors if not given.
        #[arg(long, short, value_name = "N")]
        jobs: Option<NonZeroUsize>,
        /// Give each guest at least so many vCPUs, and so queues of disks and networks.
        #[arg(long, value_name = "N")]
        cpus: Option<u32>,
        /// Scenarios; all of them if none is named.
        #[arg(value_name = "SCENARIO")]
        scenarios: Vec<String>,
    },
    /// Check what needs no guest: format, lints, documentation, dependencies, unit and property
    /// tests.
    ///
    /// Takes about two minutes when everything has been built before.
    Check {
        /// Fetch the newest advisories on crates first; those that were fetched once are used from
        /// then on.
        #[arg(long)]
        fetch_advisories: bool,
    },
    /// Run nido's own tests of what it does with KVM in level 1.
    ///
    /// On a machine without KVM, or with one that does not run everything, `check` passes over
    /// what they cannot do.
    KvmTests,
    /// Run every test: what `check` runs, fuzzing for half a minute, all scenarios.
    Test {
        #[command(flatten)]
        place: PlaceOptions,
    },
    /// Let libFuzzer look for inputs that break the remapping unit, or the restoring of a machine.
    ///
    /// What it finds, and the inputs that it starts from, are kept in the cache.
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 60, value_name = "N")]
        seconds: u64,
        /// unit, queue, irte or state; all of them if none is named.
        #[arg(value_name = "TARGET")]
        target: Option<String>,
    },
    /// Measure.
    Bench {
        #[command(subcommand)]
        what: Bench,
    },
    /// Build the guest kernel unless the cache has it, and say where it is.
    Kernel {
        /// Look for a newer source package and build it.
        #[arg(long)]
        update: bool,
    },
    /// Remove the cache: guest kernels, packages, indexes.
    Clean,
}

#[derive(Subcommand)]
enum Bench {
    /// nido beside the newest QEMU of Debian's backports, alioth, and other VMMs whose programs are
    /// given: the time from the start to the guest's init, exits by kind, memory; requests to a disk
    /// and TCP over a tap, without a unit, and with first-stage and second-stage tables.
    ///
    /// Prints tables in Markdown. Each guest runs in a level 1 of its own, which that QEMU emulates.
    Compare {
        /// Boots of each; a third as many guests measure their disks and networks.
        #[arg(long, default_value_t = 7, value_name = "N")]
        rounds: u32,
        /// Only one part.
        #[arg(long, value_enum, value_name = "PART")]
        only: Option<Part>,
        /// Have level 1's time be the number of instructions it executes, whatever else the machine
        /// does.
        #[arg(long)]
        instructions: bool,
        /// cloud-hypervisor, a static program.
        #[arg(long, value_name = "FILE")]
        cloud_hypervisor: Option<PathBuf>,
        /// Firecracker, a static program.
        #[arg(long, value_name = "FILE")]
        firecracker: Option<PathBuf>,
    },
    /// Live migration between two nidos, beside two QEMUs, on this machine's KVM: how long a guest
    /// stands still, what is sent, and what it gets done meanwhile; and nido's snapshots.
    ///
    /// Prints tables in Markdown. The guest has no operating system, so that any KVM runs it.
    Migrate {
        /// Moves of each.
        #[arg(long, default_value_t = 3, value_name = "N")]
        rounds: u32,
        /// Only guests whose names contain this.
        #[arg(long, value_name = "NAME")]
        only: Option<String>,
    },
    /// What a guest's maps and its direct I/O cost with assigned devices and shadowed tables,
    /// beside QEMU's.
    Shadow {
        /// Runs of each.
        #[arg(long, default_value_t = 3, value_name = "N")]
        rounds: u32,
        /// Have level 1's time be the number of instructions it executes, whatever else the machine
        /// does. The disk, whose time is level 0's, is left out.
        #[arg(long)]
        instructions: bool,
    },
    /// What a guest's maps and its direct I/O cost with assigned devices three levels deep, in
    /// time, exits and ioctls: with nested tables, with shadowed ones, and without a unit.
    Nested {
        /// Runs of each.
        #[arg(long, default_value_t = 3, value_name = "N")]
        rounds: u32,
    },
    /// What it costs to have the host follow the guest's tables, beside the host's calls: by
    /// bindings, devices, areas, and groups of page requests that wait.
    Host {
        /// Only cases whose names contain this.
        #[arg(value_name = "CASE")]
        filter: Option<String>,
    },
    /// What the remapping unit costs: DMA with and without it, table walks, invalidation.
    Iommu {
        /// Only cases whose names contain this.
        #[arg(value_name = "CASE")]
        filter: Option<String>,
    },
}

/// A part of `bench compare`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// From the start to the guest's init.
    Boot,
    /// Direct I/O of a disk.
    Disk,
    /// TCP over a tap.
    Net,
}

impl Part {
    fn part(self) -> lab::agent::bench_compare::Part {
        match self {
            Self::Boot => lab::agent::bench_compare::Part::Boot,
            Self::Disk => lab::agent::bench_compare::Part::Disk,
            Self::Net => lab::agent::bench_compare::Part::Net,
        }
    }
}

#[derive(Args, Clone, Copy)]
struct PlaceOptions {
    /// Where nido runs: on this machine's KVM, or in level 1 under QEMU's software emulation.
    #[arg(long = "on", value_enum, default_value_t = Where::Auto, value_name = "WHERE")]
    place: Where,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Where {
    /// On this machine if its KVM runs Linux, else in level 1.
    Auto,
    /// On this machine.
    Host,
    /// In level 1.
    Level1,
}

fn main() -> ExitCode {
    lab::sys::catch_interrupts();
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything passed.
fn run(arguments: Arguments) -> Result<bool> {
    match arguments.command {
        Command::Boot {
            place,
            check,
            options,
        } => boot::run(place.place, check, options),
        Command::Lab {
            list: true,
            markdown,
            ..
        } => {
            if markdown {
                print!("{}", lab_command::markdown());
            } else {
                lab_command::list();
            }
            Ok(true)
        }
        Command::Lab {
            place,
            verbose,
            repeat,
            jobs,
            cpus,
            scenarios,
            ..
        } => {
            let manner = Manner {
                place: place.place,
                verbose,
                repeat,
                jobs: jobs.map(NonZeroUsize::get),
                cpus,
            };
            lab_command::run(&scenarios, manner)
        }
        Command::Check { fetch_advisories } => check::run(fetch_advisories),
        Command::KvmTests => kvm_tests::run(),
        Command::Test { place } => test::run(place.place),
        Command::Bench {
            what:
                Bench::Compare {
                    rounds,
                    only,
                    instructions,
                    cloud_hypervisor,
                    firecracker,
                },
        } => bench_compare::run(&bench_compare::Wanted {
            rounds,
            only: only.map(Part::part),
            time: if instructions {
                level0::Time::Instructions
            } else {
                level0::Time::Real
            },
            given: bench_compare::Given {
                cloud_hypervisor,
                firecracker,
            },
        }),
        Command::Bench {
            what: Bench::Iommu { filter },
        } => bench_criterion::run(&bench_criterion::IOMMU, filter.as_deref()),
        Command::Bench {
            what: Bench::Host { filter },
        } => bench_criterion::run(&bench_criterion::HOST, filter.as_deref()),
        Command::Bench {
            what: Bench::Migrate { rounds, only },
        } => bench_migrate::run(rounds, only.as_deref()),
        Command::Bench {
            what: Bench::Nested { rounds },
        } => bench_nested::run(rounds),
        Command::Bench {
            what:
                Bench::Shadow {
                    rounds,
                    instructions,
                },
        } => bench_shadow::run(rounds, instructions),
        Command::Fuzz { seconds, target } => {
            fuzz::run(target.as_deref(), Duration::from_secs(seconds))
        }
        Command::Kernel { update } => {
            let kernel = kernel::provide(update)?;
            println!("{}", kernel.directory.display());
            Ok(true)
        }
        Command::Clean => {
            let cache = paths::cache()?;
            println!("removing {}", cache.display());
            match std::fs::remove_dir_all(&cache) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(true),
            }
        }
    }
}
