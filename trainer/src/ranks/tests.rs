//! Sums and records over wires between threads, in memory and over TCP, against one rank alone.
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::channels::Channels;
use super::gather::{all_gather, broadcast};
use super::meeting::{MeetingError, meet};
use super::place::Place;
use super::sum::sum;
use super::tcp::{Tcp, write_whole};
use super::wire::{Wire, WireError};

/// Values whose sums depend on the order of additions.
fn values(random: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    let value = |_| {
        let number = random.next_u64();
        let unit = (number >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
        unit * 10f32.powi((number % 9) as i32 - 4)
    };
    (0..len).map(value).collect()
}

/// The balanced binary tree over the values of all ranks, on one.
fn tree(all: &[Vec<f32>]) -> Vec<f32> {
    if let [one] = all {
        return one.clone();
    }
    let (left, right) = all.split_at(all.len() / 2);
    let (mut left, right) = (tree(left), tree(right));
    for (left, right) in left.iter_mut().zip(right) {
        *left += right;
    }
    left
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// What each rank finds, each on a thread of its own.
fn on_all<W: Wire, R: Send>(
    wires: Vec<W>,
    found: impl Fn(&mut W) -> R + Send + Copy + Sync,
) -> Vec<R> {
    std::thread::scope(|scope| {
        let threads = wires.into_iter().map(|mut wire| {
            scope.spawn(move || {
                let found = found(&mut wire);
                wire.leave(None);
                found
            })
        });
        let threads = threads.collect::<Vec<_>>();
        let join = |thread: std::thread::ScopedJoinHandle<'_, R>| thread.join().expect("a rank");
        threads.into_iter().map(join).collect()
    })
}

fn sums_are_those_of_the_tree<W: Wire>(wires: impl Fn(usize) -> Vec<W>, lens: &[usize]) {
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for size in [1, 2, 4, 8, 16] {
        let all: Vec<Vec<Vec<f32>>> = lens
            .iter()
            .map(|len| (0..size).map(|_| values(&mut random, *len)).collect())
            .collect();
        let found = on_all(wires(size), |wire| {
            let (rank, mut other) = (wire.rank(), Vec::new());
            let each = all.iter().map(|of_ranks| {
                let mut own = of_ranks[rank].clone();
                sum(wire, &mut own, &mut other).map(|()| own)
            });
            each.collect::<Result<Vec<_>, _>>().expect("sums")
        });
        for (number, of_ranks) in all.iter().enumerate() {
            let expected = bits(&tree(of_ranks));
            for (rank, found) in found.iter().enumerate() {
                let len = lens[number];
                assert!(
                    bits(&found[number]) == expected,
                    "{len} values on rank {rank} of {size}"
                );
            }
        }
    }
}

#[test]
fn a_sum_over_ranks_has_the_bits_of_one_tree() {
    let lens = [0, 1, 2, 3, 5, 16, 17, 31, 100, 1_001, 70_001];
    sums_are_those_of_the_tree(Channels::new, &lens);
}

#[test]
fn records_of_any_length_come_to_all_in_order() {
    for size in [1, 2, 4, 8, 16] {
        let record = |rank: usize| vec![rank as u8; (rank * 7) % 5];
        let found = on_all(Channels::new(size), |wire| {
            let own = record(wire.rank());
            all_gather(wire, &own).expect("records")
        });
        let expected = (0..size).map(record).collect::<Vec<_>>();
        assert!(found.iter().all(|found| *found == expected), "{size}");
        let found = on_all(Channels::new(size), |wire| {
            let mut bytes = if wire.rank() == 0 {
                vec![5, 6, 7]
            } else {
                vec![0; 3]
            };
            broadcast(wire, &mut bytes).map(|()| bytes)
        });
        assert!(found.iter().all(|found| *found == Ok(vec![5, 6, 7])));
    }
}

#[test]
fn ranks_that_are_out_of_step_are_told_so() {
    let found = on_all(Channels::new(2), |wire| {
        let mut room = vec![0; 3 + wire.rank()];
        wire.send_receive(1 - wire.rank(), &[1, 2, 3], &mut room)
    });
    assert_eq!(found[0], Ok(()));
    let error = found[1].as_ref().expect_err("three bytes are not four");
    assert!(error.to_string().contains("rank 0 sent 3 bytes"), "{error}");
}

/// A port that is free now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its number").port()
}

fn places(size: usize) -> Vec<Place> {
    let meeting = ("127.0.0.1".to_owned(), free_port());
    let place = |rank| Place {
        rank,
        size,
        local_rank: rank,
        sharing: 1,
        meeting: Some(meeting.clone()),
    };
    (0..size).map(place).collect()
}

fn never() -> Option<i32> {
    None
}

/// An end for each rank, over TCP.
fn over_tcp(size: usize) -> Vec<Tcp> {
    let ends = std::thread::scope(|scope| {
        let threads = places(size).into_iter().map(|place| {
            scope.spawn(move || {
                let within = Duration::from_secs(30);
                let streams = meet(&place, "1", within, &|_| ()).expect("a meeting");
                Tcp::new((place.rank, size), streams, never).expect("threads")
            })
        });
        let threads = threads.collect::<Vec<_>>();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Tcp>| thread.join().expect("a rank");
        threads.into_iter().map(join).collect::<Vec<_>>()
    });
    assert_eq!(ends.len(), size);
    ends
}

#[test]
fn tcp_carries_the_same_sums() {
    // Half of the last is more than a frame.
    sums_are_those_of_the_tree(over_tcp, &[0, 1, 3, 1_001, 700_001]);
}

/// More than the buffers between two ranks hold, to one that reads late, and to one that reads no
/// more.
#[test]
fn what_is_taken_late_arrives_whole_and_what_is_not_taken_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut writer = TcpStream::connect(address).expect("a connection");
    let (mut reader, _) = listener.accept().expect("a connection");
    let timeout = Some(Duration::from_millis(20));
    writer.set_write_timeout(timeout).expect("a timeout");
    let sent = vec![7; 32 << 20];
    let mut received = vec![0; sent.len()];
    let (go, goes) = channel();
    let (received, _open) = std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            goes.recv().expect("a word");
            reader.read_exact(&mut received).expect("all of it");
            (received, reader)
        });
        let mut asked = 0;
        let written = write_whole(&mut writer, &sent, &mut |_| {
            asked += 1;
            if asked == 2 {
                go.send(()).expect("a reader");
            }
            true
        });
        written.expect("all is written");
        reading.join().expect("a reader")
    });
    assert!(received == sent);
    let least = Duration::from_millis(60);
    let mut longest = Duration::ZERO;
    let given_up = write_whole(&mut writer, &sent, &mut |stuck| {
        longest = stuck;
        stuck < least
    });
    let error = given_up.expect_err("nobody reads");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(longest >= least, "{longest:?}");
}

#[test]
fn a_rank_that_ends_is_named_with_its_reason_by_all() {
    let started = Instant::now();
    let found = on_all(over_tcp(8), |wire| {
        if wire.rank() == 5 {
            wire.leave(Some((5, "has failed: the disk is full")));
            return String::new();
        }
        let mut error = None;
        while error.is_none() {
            error = all_gather(wire, b"x").err();
        }
        let error = error.expect("an error");
        let (rank, cause) = error.blame();
        wire.leave(Some((rank, &cause)));
        error.to_string()
    });
    for (rank, found) in found.iter().enumerate().filter(|(rank, _)| *rank != 5) {
        assert_eq!(found, "rank 5 has failed: the disk is full", "rank {rank}");
    }
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_rank_that_is_gone_without_a_word_is_named() {
    let found = on_all(over_tcp(4), |wire| {
        if wire.rank() == 2 {
            wire.cut();
            return String::new();
        }
        let error = all_gather(wire, b"x").expect_err("rank 2 is gone");
        let (rank, cause) = error.blame();
        wire.leave(Some((rank, &cause)));
        error.to_string()
    });
    for (rank, found) in found.iter().enumerate().filter(|(rank, _)| *rank != 2) {
        assert!(
            found.contains("rank 2 has ended without a word"),
            "rank {rank}: {found}"
        );
    }
}

#[test]
fn a_look_at_the_others_takes_nothing_away_and_sees_an_end() {
    let found = on_all(over_tcp(2), |wire| {
        if wire.rank() == 1 {
            wire.send_receive(0, b"early", &mut []).expect("sent");
            wire.send_receive(0, &[], &mut [0])
                .expect("rank 0 has looked");
            wire.leave(Some((1, "has failed: the disk is full")));
            return String::new();
        }
        std::thread::sleep(Duration::from_millis(100));
        wire.check().expect("rank 1 is there");
        wire.send_receive(1, b"!", &mut []).expect("sent");
        let until = Instant::now() + Duration::from_secs(20);
        let mut looked = Ok(());
        while looked.is_ok() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
            looked = wire.check();
        }
        let mut early = [0; 5];
        let taken = wire.send_receive(1, &[], &mut early);
        taken.expect("what came before the end");
        assert_eq!(&early, b"early");
        looked.expect_err("rank 1 has ended").to_string()
    });
    assert_eq!(found[0], "rank 1 has failed: the disk is full");
}

#[test]
fn a_signal_at_one_rank_is_heard_by_all() {
    let places = places(4);
    let heard = std::thread::scope(|scope| {
        let threads = places.into_iter().map(|place| {
            scope.spawn(move || {
                let streams = meet(&place, "1", Duration::from_secs(30), &|_| ());
                let asked: fn() -> Option<i32> = if place.rank == 3 { || Some(15) } else { never };
                let mut wire =
                    Tcp::new((place.rank, 4), streams.expect("a meeting"), asked).expect("threads");
                let until = Instant::now() + Duration::from_secs(20);
                while wire.stop_heard().is_none() && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let heard = wire.stop_heard();
                // Who leaves at once tells nobody any more.
                all_gather(&mut wire, &[]).expect("all");
                wire.leave(None);
                heard
            })
        });
        let threads = threads.collect::<Vec<_>>();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| thread.join().expect("a rank");
        threads.into_iter().map(join).collect::<Vec<Option<i32>>>()
    });
    assert_eq!(heard, [Some(15); 4]);
}

#[test]
fn other_programs_and_other_numbers_of_ranks_do_not_meet() {
    let places = places(2);
    let [first, second] = &places[..] else {
        unreachable!("two ranks")
    };
    let of_three = Place {
        size: 4,
        ..second.clone()
    };
    for (other, version, part) in [
        (second, "2", "rank 1 is nepa 2, rank 0 is nepa 1"),
        (&of_three, "1", "one of 4 ranks, rank 0 as one of 2"),
    ] {
        let (one, two) = std::thread::scope(|scope| {
            let within = Duration::from_secs(30);
            let one = scope.spawn(move || meet(first, "1", within, &|_| ()).map(drop));
            let two = scope.spawn(move || meet(other, version, within, &|_| ()).map(drop));
            (one.join().expect("rank 0"), two.join().expect("rank 1"))
        });
        for error in [one, two].map(Result::unwrap_err) {
            assert!(error.to_string().contains(part), "{part} in {error}");
        }
    }
    // Nobody comes.
    let error = meet(first, "1", Duration::from_millis(100), &|_| ()).unwrap_err();
    assert!(matches!(error, MeetingError::Missing { .. }));
    assert!(error.to_string().contains("rank 1 did not come"), "{error}");
    let error = meet(second, "1", Duration::from_millis(100), &|_| ()).unwrap_err();
    assert!(error.to_string().contains("rank 0 is not at"), "{error}");
}

#[test]
fn blame_is_passed_on() {
    let error = WireError::Ended {
        rank: 3,
        cause: "has failed: x".to_owned(),
    };
    assert_eq!(error.blame(), (3, "has failed: x".to_owned()));
    assert_eq!(error.to_string(), "rank 3 has failed: x");
}
