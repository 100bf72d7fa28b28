// A "cuda" for a CPU build of torch that does nothing: autograd asks a device for its guard and its streams, and asks
// the CUDA hooks whether there is a device at all. No kernel exists, so nothing can be computed.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstring>

using c10::Device, c10::DeviceIndex, c10::DeviceType, c10::Stream;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static Stream only() { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Device exchangeDevice(Device) const override { return getDevice(); }
  Stream getStream(Device) const noexcept override { return only(); }
  Stream getDefaultStream(Device) const override { return only(); }
  Stream exchangeStream(Stream) const noexcept override { return only(); }
  void record(void**, const Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
};

// Its numbers are the CPU's; where it says it is, is what matters.
struct Generator final : at::CPUGeneratorImpl {
  Generator() { device_ = Device(DeviceType::CUDA, 0); }
};

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  at::Generator getNewGenerator(DeviceIndex) const override { return at::make_generator<Generator>(); }
};

static_assert(sizeof(at::CUDAHooksInterface) == sizeof(void*), "the hooks hold data: they cannot be exchanged");

// torch makes its hooks once, at the first question, and keeps them. They hold nothing but their virtual functions,
// so exchanging these is exchanging the hooks, and can be undone.
extern "C" void pretend(bool on) {
  static const Guard guard;
  static const Hooks ours;
  static void* theirs = nullptr;
  auto* hooks = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  if (!theirs) std::memcpy(&theirs, hooks, sizeof(void*));
  std::memcpy(hooks, on ? static_cast<const void*>(&ours) : &theirs, sizeof(void*));
  c10::impl::device_guard_impl_registry[static_cast<int>(DeviceType::CUDA)].store(on ? &guard : nullptr);
}
