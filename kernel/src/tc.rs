//! Traffic control: a token bucket on what leaves a device, and a detour for what comes in.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcAttribute,
    TcFilterU32Option, TcHandle, TcMessage, TcOption,
};
use nix::errno::Errno;

use crate::attribute::{find, nest};
use crate::error::Result;
use crate::socket::{Request, Socket};

const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TC_U32_TERMINAL: u8 = 1;
const TC_ACT_STOLEN: u32 = 4;
const TCA_EGRESS_REDIR: u32 = 1;
const ETH_P_ALL: u16 = 3;
/// Bytes of a `struct tc_ratespec`; its last four are the rate.
const RATESPEC: usize = 12;
/// A tick of the packet scheduler is 64 ns (`PSCHED_SHIFT`).
const NANOSECONDS_PER_TICK: u64 = 64;

/// A token bucket filter (tc-tbf(8)), as the kernel keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes per second.
    pub rate: u64,
    /// Bytes that may wait.
    pub limit: u32,
    /// How long it takes to fill the bucket, in the scheduler's ticks of 64 ns.
    pub buffer: u32,
}

impl TokenBucket {
    /// A bucket of `burst` bytes, filled at `rate` bytes per second (not 0), with a queue that is
    /// never longer than `latency_ms`. What the kernel's 32 bits cannot hold is its maximum:
    /// wrapped around, a huge burst would become a tiny one.
    pub fn new(rate: u64, burst: u32, latency_ms: u32) -> TokenBucket {
        let microseconds = u128::from(burst) * 1_000_000 / u128::from(rate.max(1));
        let ticks = microseconds * 1000 / u128::from(NANOSECONDS_PER_TICK);
        let waiting = u128::from(rate) * u128::from(latency_ms) / 1000;
        TokenBucket {
            rate,
            limit: saturate(waiting + u128::from(burst)),
            buffer: saturate(ticks),
        }
    }
}

fn saturate(number: u128) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `tc qdisc replace dev DEV root handle 1: tbf rate R burst B limit L`.
pub fn replace_token_bucket(ifindex: u32, bucket: &TokenBucket) -> Request {
    let mut parameters = Vec::with_capacity(3 * 12);
    parameters.extend([0; RATESPEC - 4]);
    parameters.extend(u32::try_from(bucket.rate).unwrap_or(u32::MAX).to_ne_bytes());
    parameters.extend([0; RATESPEC]); // no peak rate
    parameters.extend(bucket.limit.to_ne_bytes());
    parameters.extend(bucket.buffer.to_ne_bytes());
    parameters.extend(0u32.to_ne_bytes()); // the MTU of the peak rate
    let mut options = vec![DefaultNla::new(TCA_TBF_PARMS, parameters)];
    if bucket.rate >= u64::from(u32::MAX) {
        let rate = bucket.rate.to_ne_bytes().to_vec();
        options.push(DefaultNla::new(TCA_TBF_RATE64, rate));
    }
    let mut qdisc = message(ifindex, TcHandle::ROOT, "tbf");
    qdisc.header.handle = handle(1, 0);
    qdisc
        .attributes
        .push(TcAttribute::Other(nest(TCA_OPTIONS, &options)));
    Request::new(
        RouteNetlinkMessage::NewQueueDiscipline(qdisc),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// `tc qdisc show dev DEV root`; None if it is not a token bucket. The kernel answers a request for
/// one discipline only to those who listen for changes, so that all are dumped.
pub fn token_bucket(socket: &mut Socket, ifindex: u32) -> Result<Option<TokenBucket>> {
    let query = TcMessage::with_index(ifindex as i32);
    let found = socket.dump(
        RouteNetlinkMessage::GetQueueDiscipline(query),
        |message| match message {
            RouteNetlinkMessage::NewQueueDiscipline(qdisc)
                if qdisc.header.index == ifindex as i32
                    && qdisc.header.parent == TcHandle::ROOT =>
            {
                parse(&qdisc)
            }
            _ => None,
        },
    )?;
    Ok(found.into_iter().next())
}

/// `tc qdisc del dev DEV root`. One that is gone already is deleted.
pub fn delete_root(ifindex: u32) -> Request {
    delete(ifindex, TcHandle::ROOT)
}

/// `tc qdisc add dev DEV handle ffff: ingress`. One that is there already is added.
pub fn add_ingress(ifindex: u32) -> Request {
    let mut qdisc = message(ifindex, TcHandle::INGRESS, "ingress");
    qdisc.header.handle = INGRESS_HANDLE;
    Request::new(
        RouteNetlinkMessage::NewQueueDiscipline(qdisc),
        NLM_F_CREATE | NLM_F_EXCL,
    )
    .done_on(&[Errno::EEXIST])
}

/// `tc qdisc del dev DEV ingress`, with its filters. One that is gone already is deleted.
pub fn delete_ingress(ifindex: u32) -> Request {
    delete(ifindex, TcHandle::INGRESS)
}

/// `tc filter add dev DEV parent ffff: prio 1 protocol all u32 match u32 0 0 flowid 1:1 action
/// mirred egress redirect dev TO`: everything that comes in leaves by the other device, and comes
/// in again behind it.
pub fn redirect_ingress(ifindex: u32, to: u32) -> Request {
    let mut filter = message(ifindex, INGRESS_HANDLE, "u32");
    filter.header.info = (1 << 16) | u32::from(ETH_P_ALL.to_be());
    // struct tc_u32_sel with one key that matches everything.
    let mut selector = vec![TC_U32_TERMINAL, 0, 1, 0];
    selector.extend([0; 12 + 16]);
    // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
    let mirred = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to];
    let mirred: Vec<u8> = mirred.into_iter().flat_map(u32::to_ne_bytes).collect();
    let action = nest(
        1,
        &[
            DefaultNla::new(TCA_ACT_KIND, b"mirred\0".to_vec()),
            nest(
                TCA_ACT_OPTIONS,
                &[DefaultNla::new(TCA_MIRRED_PARMS, mirred)],
            ),
        ],
    );
    let class = 0x0001_0001u32.to_ne_bytes().to_vec();
    let options = [
        DefaultNla::new(TCA_U32_CLASSID, class),
        DefaultNla::new(TCA_U32_SEL, selector),
        nest(TCA_U32_ACT, &[action]),
    ];
    filter
        .attributes
        .push(TcAttribute::Other(nest(TCA_OPTIONS, &options)));
    Request::new(
        RouteNetlinkMessage::NewTrafficFilter(filter),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// `tc filter show dev DEV ingress`: the devices that filters redirect to.
pub fn redirects(socket: &mut Socket, ifindex: u32) -> Result<Vec<u32>> {
    let mut query = TcMessage::with_index(ifindex as i32);
    query.header.parent = INGRESS_HANDLE;
    let found = socket.dump(
        RouteNetlinkMessage::GetTrafficFilter(query),
        |message| match message {
            RouteNetlinkMessage::NewTrafficFilter(filter) => Some(targets(&filter)),
            _ => None,
        },
    )?;
    Ok(found.into_iter().flatten().collect())
}

const INGRESS_HANDLE: TcHandle = handle(0xffff, 0);

const fn handle(major: u16, minor: u16) -> TcHandle {
    TcHandle { major, minor }
}

fn message(ifindex: u32, parent: TcHandle, kind: &str) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = parent;
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

/// The kernel answers ENOENT or EINVAL for a discipline that is not there, by its age.
fn delete(ifindex: u32, parent: TcHandle) -> Request {
    let mut qdisc = TcMessage::with_index(ifindex as i32);
    qdisc.header.parent = parent;
    Request::new(RouteNetlinkMessage::DelQueueDiscipline(qdisc), 0).done_on(&[
        Errno::ENOENT,
        Errno::EINVAL,
        Errno::ENODEV,
    ])
}

fn parse(qdisc: &TcMessage) -> Option<TokenBucket> {
    let is_ours =
        |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == "tbf");
    if !qdisc.attributes.iter().any(is_ours) {
        return None;
    }
    let options = qdisc
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => options.first(),
            _ => None,
        })?;
    let TcOption::Other(options) = options else {
        return None;
    };
    let bytes = value(options);
    let parameters = find(&bytes, TCA_TBF_PARMS)?;
    let number = |at: usize| {
        let bytes = parameters.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let wide = find(&bytes, TCA_TBF_RATE64).and_then(|bytes| bytes.try_into().ok());
    Some(TokenBucket {
        rate: wide.map_or(u64::from(number(RATESPEC - 4)?), u64::from_ne_bytes),
        limit: number(2 * RATESPEC)?,
        buffer: number(2 * RATESPEC + 4)?,
    })
}

fn value(attribute: &DefaultNla) -> Vec<u8> {
    use netlink_packet_core::Nla;
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

fn targets(filter: &TcMessage) -> Vec<u32> {
    let options = filter
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    let actions = options.flatten().filter_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    });
    actions.flatten().flat_map(redirected_to).collect()
}

fn redirected_to(action: &TcAction) -> Option<u32> {
    let options = action
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcActionAttribute::Options(options) => Some(options),
            _ => None,
        })?;
    options.iter().find_map(|option| match option {
        TcActionOption::Mirror(TcActionMirrorOption::Parms(mirred)) => Some(mirred.ifindex),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_what_upstream_computes_where_nothing_overflows() {
        let bucket = TokenBucket::new(1_000_000, 100_000, 25);
        assert_eq!(bucket.limit, 125_000);
        assert_eq!(bucket.buffer, 1_562_500, "100 ms in ticks of 64 ns");
    }

    #[test]
    fn what_does_not_fit_is_the_maximum_and_never_wraps() {
        // containerd's burst, and CRI-O's, at 1 Mbit/s.
        let bucket = TokenBucket::new(125_000, 536_870_911, 25);
        assert_eq!((bucket.limit, bucket.buffer), (536_874_036, u32::MAX));
        let bucket = TokenBucket::new(125_000, u32::MAX, 25);
        assert_eq!((bucket.limit, bucket.buffer), (u32::MAX, u32::MAX));
        let bucket = TokenBucket::new(u64::MAX, u32::MAX, u32::MAX);
        assert_eq!((bucket.limit, bucket.buffer), (u32::MAX, 0));
        let _ = TokenBucket::new(0, 0, 0);
    }
}
