package kube

// containerdConfig takes root, state, socket, the folder of the CNI configuration, and the addresses and
// URLs of two registries.
// Without restrict_oom_score_adj no sandbox starts where the machine does not allow a lower score.
const containerdConfig = `version = 2
root = %q
state = %q
oom_score = 0
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + pauseName + `"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".registry.mirrors.%q]
    endpoint = [%q]
  [plugins."io.containerd.grpc.v1.cri".registry.mirrors.%q]
    endpoint = [%q]
`

// cniConfig takes the pods' addresses. Pods have a route each, no bridge: kube-proxy's rules then see every packet.
const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "subnet": %q, "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// kubeletConfig takes the control group above pods. The disk's thresholds are off: a full disk is not what is tested.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: %s
failCgroupV1: false
failSwapOn: false
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
resolvConf: ""
evictionHard: {memory.available: 50Mi}
imageGCHighThresholdPercent: 100
serializeImagePulls: false
syncFrequency: 10s
healthzPort: 0
`

// proxyConfig takes the node's address, a kubeconfig, the pods' addresses and the node's name.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: %s
clientConnection: {kubeconfig: %q}
clusterCIDR: %s
hostnameOverride: %s
mode: iptables
conntrack: {maxPerCore: 0, min: 0}
iptables: {minSyncPeriod: 100ms}
`

// kubeconfig takes server, certificate and token.
const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: me, user: {token: %q}}]
contexts: [{name: test, context: {cluster: test, user: me}}]
current-context: test
`
