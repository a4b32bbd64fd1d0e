//! A pod and its node as two network namespaces with a cable between, and threads of this test that live in them: each with a user
//! of its own, so that sockets look to the kernel as those of an application or of a sidecar do.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use osier_tests::process;
use osier_tests::wait;
use socket2::{Domain, SockRef, Socket, Type};

/// User and group of a sidecar.
pub const SIDECAR: u32 = 1337;
/// User and group of an application.
pub const APPLICATION: u32 = 1000;

/// How long a connection may take; a dead end shows after it.
const LIMIT: Duration = Duration::from_secs(5);

/// Two namespaces, removed when dropped.
pub struct Pod {
    pod: String,
    node: String,
    servers: Vec<Server>,
}

/// Where a thread lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the pod.
    Pod,
    /// On the node.
    Node,
}

/// Addresses of both ends; each is there in IPv4 and in IPv6.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The pod's.
    pub pod: IpAddr,
    /// The node's.
    pub node: IpAddr,
    /// Another one of the node's.
    pub other: IpAddr,
    /// Nobody's; of a Service, perhaps.
    pub nobody: IpAddr,
    /// Loopback.
    pub loopback: IpAddr,
    /// Where a sidecar's inbound side comes from.
    pub inbound_source: IpAddr,
}

/// Both families.
pub const FAMILIES: [Addresses; 2] = [
    Addresses {
        pod: IpAddr::V4(std::net::Ipv4Addr::new(10, 201, 1, 2)),
        node: IpAddr::V4(std::net::Ipv4Addr::new(10, 201, 1, 1)),
        other: IpAddr::V4(std::net::Ipv4Addr::new(10, 201, 1, 3)),
        nobody: IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 7, 7)),
        loopback: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        inbound_source: IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 6)),
    },
    Addresses {
        pod: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x201, 0, 0, 0, 0, 0, 2)),
        node: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x201, 0, 0, 0, 0, 0, 1)),
        other: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x201, 0, 0, 0, 0, 0, 3)),
        nobody: IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 7)),
        loopback: IpAddr::V6(Ipv6Addr::LOCALHOST),
        inbound_source: IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
    },
];

static COUNT: AtomicU32 = AtomicU32::new(0);

impl Pod {
    /// A pod without anything in it, with addresses of these families.
    pub fn new(families: &[Addresses]) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this suite needs root: it makes network namespaces");
        let tag = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made =
            Self { pod: format!("osier-pod-{tag}"), node: format!("osier-node-{tag}"), servers: vec![] };
        let (pod, node) = (&made.pod, &made.node);
        let mut lines = vec![
            format!("netns add {pod}"),
            format!("netns add {node}"),
            format!("link add eth0 netns {pod} type veth peer name eth0 netns {node}"),
            format!("-n {pod} link set lo up"),
            format!("-n {node} link set lo up"),
            format!("-n {pod} link set eth0 up"),
            format!("-n {node} link set eth0 up"),
        ];
        for addresses in families {
            let (length, flags) = if addresses.pod.is_ipv4() { (24, "") } else { (64, " nodad") };
            lines.push(format!("-n {pod} addr add {}/{length} dev eth0{flags}", addresses.pod));
            lines.push(format!("-n {node} addr add {}/{length} dev eth0{flags}", addresses.node));
            lines.push(format!("-n {node} addr add {}/{length} dev eth0{flags}", addresses.other));
            lines.push(format!("-n {pod} route add default via {}", addresses.node));
        }
        for line in lines {
            let done = Command::new("ip").args(line.split(' ')).status().expect("ip starts");
            assert!(done.success(), "ip {line}");
        }
        made.wait_for_cable(families);
        made
    }

    /// The kernel takes a moment until addresses on a new cable can be used, IPv6 ones longest.
    fn wait_for_cable(&self, families: &[Addresses]) {
        for addresses in families {
            for (place, to) in
                [(Place::Pod, addresses.node), (Place::Pod, addresses.other), (Place::Node, addresses.pod)]
            {
                wait::until("both ends reach each other", || {
                    let answer = self.ask(place, 0, 0, None, SocketAddr::new(to, 1));
                    answer.contains("refused").then_some(())
                });
            }
        }
    }

    /// What commands in the pod read as /etc/resolv.conf.
    pub fn resolv_conf(&self, text: &str) {
        let folder = format!("/etc/netns/{}", self.pod);
        std::fs::create_dir_all(&folder).expect("a folder of the namespace");
        std::fs::write(format!("{folder}/resolv.conf"), text).expect("a file of the namespace");
    }

    fn namespace(&self, place: Place) -> &str {
        match place {
            Place::Pod => &self.pod,
            Place::Node => &self.node,
        }
    }

    /// A command there, as root.
    pub fn command(&self, place: Place, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.namespace(place), program]);
        command
    }

    /// `osier-proxy init` in the pod.
    pub fn init(&self, words: &str) -> Output {
        let program = process::own("osier-proxy");
        let mut command = self.command(Place::Pod, &program.get_program().to_string_lossy());
        command.arg("init").args(words.split(' ').map(|word| if word == "''" { "" } else { word }));
        command.output().expect("init starts")
    }

    /// `osier-proxy init`, which succeeds.
    pub fn capture(&self, words: &str) -> String {
        let output = self.init(words);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "init {words}: {}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Everything that packets meet in the pod, without counters.
    pub fn ruleset(&self) -> String {
        let mut all = String::new();
        for line in
            ["nft -s list ruleset", "iptables-legacy-save", "ip6tables-legacy-save", "ip rule", "ip -6 rule"]
        {
            let mut words = line.split(' ');
            let mut command = self.command(Place::Pod, words.next().expect("a program"));
            let output = command.args(words).output().expect("the program starts");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // Comments have the time, chains their counters.
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.for_each(|line| all += &format!("{}\n", line.split(" [").next().unwrap_or_default()));
        }
        all
    }

    /// Runs `work` there as this user and group.
    pub fn inside<T: Send>(&self, place: Place, uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace(place);
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(namespace, uid, gid);
                work()
            });
            thread.join().expect("the thread ends well")
        })
    }

    /// Serves TCP there on this port of all addresses; `answer` is what each connection is told, by the socket.
    pub fn serve(
        &mut self,
        place: Place,
        port: u16,
        transparent: bool,
        answer: impl Fn(&TcpStream) -> String + Send + 'static,
    ) {
        let server = self.inside(place, 0, 0, || Server::start(port, transparent, answer));
        self.servers.push(server);
    }

    /// An application (or whatever else stands at the end of a way) that says who it is.
    pub fn serve_application(&mut self, place: Place, name: &'static str, port: u16) {
        self.serve(place, port, false, move |socket| {
            let (local, peer) = ends(socket);
            format!("{name} {local} from {}", peer.ip())
        });
    }

    /// What a connection from `place` by this user (and group) to `to` is told; the error where there is none.
    pub fn ask(&self, place: Place, uid: u32, gid: u32, from: Option<IpAddr>, to: SocketAddr) -> String {
        self.inside(place, uid, gid, || connect_and_read(from, to).unwrap_or_else(|error| error.to_string()))
    }

    /// What comes back for a datagram.
    pub fn ask_udp(&self, place: Place, uid: u32, to: SocketAddr) -> String {
        self.inside(place, uid, uid, || {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).expect("a socket");
            socket.set_read_timeout(Some(LIMIT)).expect("a limit");
            socket.send_to(b"hello", to).expect("sent");
            let mut answer = [0; 64];
            match socket.recv_from(&mut answer) {
                Ok((length, peer)) => {
                    format!("{} from {peer}", String::from_utf8_lossy(&answer[..length]))
                }
                Err(error) => error.to_string(),
            }
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.servers.clear();
        for namespace in [&self.pod, &self.node] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
            let _ = std::fs::remove_dir_all(format!("/etc/netns/{namespace}"));
        }
    }
}

/// This thread lives there from now on.
fn enter(namespace: &str, uid: u32, gid: u32) {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).expect("the namespace is there");
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).expect("the namespace can be entered");
    // The kernel takes a socket's owner from these two, which are the thread's own.
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
}

fn connect_and_read(from: Option<IpAddr>, to: SocketAddr) -> std::io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&to.into(), LIMIT)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LIMIT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Our end and the other, as IPv4 where they are.
pub fn ends(socket: &TcpStream) -> (SocketAddr, SocketAddr) {
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    (plain(socket.local_addr().expect("an address")), plain(socket.peer_addr().expect("an address")))
}

/// Where a connection was going, as the kernel tells a sidecar.
pub fn original_destination(socket: &TcpStream) -> String {
    let (local, _) = ends(socket);
    let reference = SockRef::from(socket);
    let original = if local.is_ipv4() { reference.original_dst_v4() } else { reference.original_dst_v6() };
    match original.ok().and_then(|address| address.as_socket()) {
        Some(address) => address.to_string(),
        None => format!("{local} directly"),
    }
}

/// An accepting thread; ended when dropped.
struct Server {
    listener: TcpListener,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(port: u16, transparent: bool, answer: impl Fn(&TcpStream) -> String + Send + 'static) -> Self {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("the address can be had again");
        socket.set_only_v6(false).expect("both families");
        if transparent {
            socket.set_ip_transparent_v4(true).expect("a transparent socket");
        }
        socket.bind(&SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port).into()).expect("the port is free");
        socket.listen(16).expect("listening");
        let listener = TcpListener::from(socket);
        let accepting = listener.try_clone().expect("a handle");
        let thread = std::thread::spawn(move || {
            while let Ok((mut socket, _)) = accepting.accept() {
                // Who doesn't wait for the answer is no concern of ours.
                let _ = socket.write_all(answer(&socket).as_bytes());
            }
        });
        Self { listener, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // On Linux this wakes who accepts.
        let _ = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Echoes datagrams there, as `name`, until the process ends or nothing comes for a while.
pub fn echo_udp(pod: &Pod, place: Place, port: u16) {
    let socket = pod.inside(place, 0, 0, || UdpSocket::bind(("::", port)).expect("the port is free"));
    socket.set_read_timeout(Some(2 * LIMIT)).expect("a limit");
    std::thread::spawn(move || {
        let mut data = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut data) {
            let _ = socket.send_to(&data[..length], peer);
        }
    });
}
