//! Rendezvous of ranks: exchange of NCCL's id.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use vtrain::distributed::RankInfo;
use vtrain::distributed::rank_info::Starter;
use vtrain::distributed::rendezvous::{Number, Rendezvous};

fn place(rank: usize, world_size: usize) -> RankInfo {
    RankInfo {
        rank,
        world_size,
        local_rank: rank,
        starter: Starter::Environment,
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn meeting() -> Rendezvous {
    Rendezvous {
        host: "localhost".into(),
        port: free_port(),
    }
}

fn of(variables: &[(&str, &str)]) -> anyhow::Result<Rendezvous> {
    Rendezvous::of(|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.to_string())
    })
}

#[test]
fn all_ranks_get_the_number_that_rank_0_makes_whoever_comes_first() {
    let (meeting, number): (_, Number) = (meeting(), std::array::from_fn(|i| i as u8));
    let (late, timeout) = (Duration::from_millis(300), Duration::from_secs(120));
    let all: Vec<Number> = std::thread::scope(|scope| {
        let started: Vec<_> = (0..4)
            .map(|rank| {
                let meeting = &meeting;
                scope.spawn(move || {
                    if rank == 0 {
                        std::thread::sleep(late);
                    }
                    meeting.share(&place(rank, 4), timeout, || Ok(number)).unwrap()
                })
            })
            .collect();
        // A stranger.
        std::thread::sleep(late * 2);
        if let Ok(mut stranger) = TcpStream::connect(("127.0.0.1", meeting.port)) {
            let _ = stranger.write_all(b"GET / HTTP/1.1\r\n\r\n");
        }
        started.into_iter().map(|rank| rank.join().unwrap()).collect()
    });
    assert_eq!(all, [number; 4]);
}

#[test]
fn ranks_that_do_not_come_are_named_and_rank_0_by_its_address() {
    // Rank 3 comes well within the time that rank 0 waits for the others, also where the machine is busy.
    let (timeout, wait, hangs) = (
        Duration::from_millis(500),
        Duration::from_secs(5),
        Duration::from_secs(120),
    );
    let (meeting, started) = (meeting(), Instant::now());
    let (first, last) = std::thread::scope(|scope| {
        let first = scope.spawn(|| meeting.share(&place(0, 4), wait, || Ok([7; 128])));
        let last = scope.spawn(|| meeting.share(&place(3, 4), hangs, || unreachable!()));
        (first.join().unwrap(), last.join().unwrap())
    });
    assert_eq!(last.unwrap(), [7; 128]);
    let error = format!("{:#}", first.unwrap_err());
    assert!(error.contains("ranks [1, 2] of 4"), "{error}");
    let error = meeting.share(&place(1, 2), timeout, || unreachable!()).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains(&format!("rank 0 at localhost:{}", meeting.port)),
        "{error}"
    );
    assert!(started.elapsed() < hangs);
}

#[test]
fn what_the_environment_lacks_is_named_and_torchruns_own_port_is_left_to_it() {
    let error = of(&[("MASTER_PORT", "29500")]).unwrap_err().to_string();
    assert!(error.contains("MASTER_ADDR"), "{error}");
    let error = of(&[("MASTER_ADDR", "here"), ("MASTER_PORT", "many")]).unwrap_err();
    assert!(format!("{error:#}").contains("MASTER_PORT is \"many\""), "{error:#}");
    let torchrun = of(&[
        ("MASTER_ADDR", "here"),
        ("MASTER_PORT", "29500"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ]);
    assert_eq!(torchrun.unwrap().port, 29501);
}
