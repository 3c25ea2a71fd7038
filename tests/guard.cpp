// Lets torch's FakeTensorMode make tensors on "cuda:0" where there is no GPU: a device guard for
// CUDA that does nothing. tests/test_rehearsal.py compiles and loads it.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>)
}
