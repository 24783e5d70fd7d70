/* A CUDA driver library without a device: it lets libraries that are linked against libcuda.so.1 load. Every call
 * but the one for the version answers CUDA_ERROR_NO_DEVICE. */

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}

#define ANSWERS_NO_DEVICE(name) \
    int name(void) { return 100; }
#define DRIVER_CALLS(X)                                                                                           \
    X(cuInit) X(cuDeviceGet) X(cuDeviceGetCount) X(cuDeviceGetAttribute) X(cuGetErrorName) X(cuGetErrorString)    \
    X(cuGetProcAddress) X(cuGetProcAddress_v2) X(cuPointerGetAttribute) X(cuStreamCreate) X(cuTensorMapEncodeTiled) \
    X(cuCtxFromGreenCtx) X(cuCtxPushCurrent_v2) X(cuCtxPopCurrent_v2) X(cuGreenCtxCreate) X(cuGreenCtxDestroy)    \
    X(cuGreenCtxGetDevResource) X(cuDeviceGetDevResource) X(cuDevResourceGenerateDesc)                            \
    X(cuDevSmResourceSplitByCount) X(cuFileRead) X(cuFileWrite) X(cuFileHandleRegister)                           \
    X(cuFileHandleDeregister) X(cuFileBufRegister) X(cuFileBufDeregister)

DRIVER_CALLS(ANSWERS_NO_DEVICE)
